package index

import (
	"errors"
	"fmt"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// ErrCorrupt is wrapped by every error that says: these bytes are not what they ought to be.
// Reading them again will not help; another copy might.
var ErrCorrupt = erofs.ErrCorrupt

// ErrNewer is wrapped by errors about an index of a version that is higher than Version.
var ErrNewer = errors.New("newer than this mica understands")

// corrupt returns an error with ErrCorrupt in its chain.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
