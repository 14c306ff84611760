package store

import (
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// lazyFile is a file that is opened by its first use. Uses must have ended
// when it is closed.
type lazyFile struct {
	f atomic.Pointer[files.File]

	mu   sync.Mutex // held while the file is opened and closed
	open func() (files.File, error)
}

func (z *lazyFile) get() (files.File, error) {
	if f := z.f.Load(); f != nil {
		return *f, nil
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if f := z.f.Load(); f != nil {
		return *f, nil
	}
	f, err := z.open()
	if err != nil {
		return nil, err
	}
	z.f.Store(&f)
	return f, nil
}

func (z *lazyFile) close() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	f := z.f.Swap(nil)
	if f == nil {
		return nil
	}
	return (*f).Close()
}

// removedLocked makes a file that was not opened before stay closed: its name
// can soon be another layer's.
func (z *lazyFile) removedLocked() {
	z.open = func() (files.File, error) { return nil, fmt.Errorf("layer was removed: %w", fs.ErrNotExist) }
}
