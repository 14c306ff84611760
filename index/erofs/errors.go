package erofs

import (
	"errors"
	"fmt"
)

// ErrCorrupt is wrapped by every error that says: these bytes are not what
// they ought to be. Reading them again will not help; another copy might.
var ErrCorrupt = errors.New("corrupt index")

// ErrNoXattr is returned by Tree.Xattr for an attribute that is not there.
var ErrNoXattr = errors.New("no such extended attribute")

// corrupt returns an error with ErrCorrupt in its chain.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
