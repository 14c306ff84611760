package fs

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/mica-snapshotter/mica/fs/erofs"
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

// kernel is how layers are served on this node.
type kernel struct {
	lazy     Mode          // of layers that are not complete
	complete Mode          // of layers that are
	lazyBy   erofs.Backing // how EROFS gets at its files
	localBy  erofs.Backing
}

// prober tries what EROFS can do below root.
type prober func(ctx context.Context, root string) (erofs.Support, error)

// supported returns what try finds out below root. That is kept; an attempt that failed, on a full
// disk perhaps, says nothing of the kernel, and is made again when somebody asks.
func supported(ctx context.Context, root string, try prober) func() (erofs.Support, error) {
	var mu sync.Mutex
	var known *erofs.Support
	return func() (erofs.Support, error) {
		mu.Lock()
		defer mu.Unlock()
		if known != nil {
			return *known, nil
		}
		if err := erofs.ClearProbes(root); err != nil {
			return erofs.Support{}, err // the store's lock says that no other process probes here
		}
		s, err := try(ctx, root)
		if err == nil {
			known = &s
		}
		return s, err
	}
}

// choose says how layers are served by what works. A mode that is forced has to.
func choose(s erofs.Support, forced Mode, directIO bool) (kernel, error) {
	var err error
	if directIO {
		s = s.By(erofs.Loop)
	}
	lazyBy, lazyErr := s.Backing(erofs.ModeErofs)
	localBy, localErr := s.Backing(erofs.ModeLocal)
	_, fuseErr := s.Backing(erofs.ModeFuse)
	k := kernel{lazy: EROFS, complete: Local, lazyBy: lazyBy, localBy: localBy}
	switch forced {
	case EROFS:
		k.complete, err = EROFS, lazyErr
	case FUSE:
		k.lazy, k.complete, err = FUSE, FUSE, fuseErr
	case Local:
		k.lazy, err = Local, localErr
	default:
		if lazyErr != nil {
			k.lazy, err = FUSE, fuseErr
		}
		if localErr != nil {
			k.complete = k.lazy
		}
	}
	if err != nil {
		return kernel{}, fmt.Errorf("mode %s: %w (mica doctor shows what works)", forced, err)
	}
	return k, nil
}

// Modes returns how layers are served on this node that are lazy, and that are complete. It
// waits until that is known.
func (t *Table) Modes() (lazy, complete Mode, err error) {
	k, err := t.kernel()
	return k.lazy, k.complete, err
}
