package fs

import (
	"fmt"
	"slices"
)

// Mode is how a layer is shown to the kernel.
type Mode string

// The modes. Auto chooses among the others by what the kernel can do.
const (
	Auto  Mode = "auto"
	EROFS Mode = "erofs" // EROFS over a FUSE file, the layer's device
	FUSE  Mode = "fuse"  // the whole tree by FUSE
	Local Mode = "local" // EROFS over the store's file; layers are downloaded whole
)

// ParseMode returns the mode of that name.
func ParseMode(s string) (Mode, error) {
	m := Mode(s)
	if !slices.Contains([]Mode{Auto, EROFS, FUSE, Local}, m) {
		return "", fmt.Errorf(`mode %q: use "auto", "erofs", "fuse" or "local"`, s)
	}
	return m, nil
}
