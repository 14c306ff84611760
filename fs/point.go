package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// point is a mount point of a layer. There is one for each variant of the tree.
type point struct {
	dir   string
	index string // path of the index file that is mounted
	mode  Mode
	tree  *fuse.Mount // fuse mode
}

// mount returns the directory that shows the layer over the layers below it, mounted.
func (v *live) mount(ctx context.Context, below []Below) (string, error) {
	attrs, err := v.inherit(below)
	if err != nil {
		return "", err
	}
	k, err := v.t.kernel()
	if err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return "", errors.New("layer was removed")
	}
	name := variant(attrs)
	if p := v.points[name]; p != nil {
		return p.dir, nil
	}
	p := &point{dir: filepath.Join(v.t.o.Root, mountsName, v.key+name), index: v.store.IndexPath() + name}
	if err := v.writeVariant(p.index, attrs); err != nil {
		return "", err
	}
	if err := v.t.clean(p.dir); err != nil {
		return "", err
	}
	if v.store.Record().State == store.Verified && k.complete == Local {
		err = p.mountLocal(v, k)
	} else {
		err = p.mountLazy(ctx, v, k)
	}
	if err != nil {
		return "", err
	}
	v.points[name] = p
	return p.dir, nil
}

// clean makes dir an empty directory on which nothing is mounted: an earlier run may have left
// mounts there, of which lazy ones are dead.
func (t *Table) clean(dir string) error {
	if err := unmount(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o711)
}

// unmount takes all that Mica has mounted at dir out of the file tree: EROFS, and FUSE under it.
func unmount(dir string) error {
	return errors.Join(erofs.Unmount(dir), fuse.Detach(dir))
}

// localReadAhead is what the kernel reads ahead in a complete layer, bytes. Its reads go past the page cache of the
// store's file, so that what is on the way is all that keeps the disk busy: with half of it, sequential
// reads are slower than those of an unpacked layer. A lazy layer has half of it: there what is read in vain is
// fetched in vain.
const localReadAhead = 2 << 20

// mountLocal mounts EROFS over the store's own file. On a lazy mount point it goes over what
// is there, which those who use it keep.
func (p *point) mountLocal(v *live, k kernel) error {
	if _, err := erofs.Mount(p.index, v.store.DevicePath(), p.dir, erofs.Options{Backing: k.localBy, ReadAhead: localReadAhead}); err != nil {
		return err
	}
	p.mode = Local
	return nil
}

// mountLazy mounts a layer whose bytes come through the daemon.
func (p *point) mountLazy(ctx context.Context, v *live, k kernel) error {
	o := fuse.Options{Log: v.t.log, Memory: v.t.memory}
	if k.lazy == FUSE {
		x := v.index
		if p.index != v.store.IndexPath() {
			f, err := os.Open(p.index)
			if err != nil {
				return err
			}
			// The mount keeps the file for as long as it lives.
			if x, err = openVariant(f); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		m, err := fuse.MountTree(ctx, p.dir, x, v.bytes(), o)
		if err != nil {
			return err
		}
		p.tree, p.mode = m, FUSE
		return nil
	}
	if v.device == nil {
		dir := filepath.Join(v.t.o.Root, devicesName, v.key)
		if err := v.t.clean(dir); err != nil {
			return err
		}
		m, err := fuse.MountDevice(ctx, dir, v.bytes(), o)
		if err != nil {
			return err
		}
		v.device = m
	}
	if _, err := erofs.Mount(p.index, v.device.DevicePath(), p.dir, erofs.Options{Backing: k.lazyBy}); err != nil {
		return fmt.Errorf("mount EROFS over FUSE: %w", err)
	}
	p.mode = EROFS
	return nil
}

func openVariant(f *os.File) (*index.Layer, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return index.Open(f, st.Size())
}

// close takes a lazy mount away. Who still uses it gets errors: the daemon ends.
func (p *point) close() error {
	switch p.mode {
	case FUSE:
		return errors.Join(p.tree.Unmount(), p.tree.Close())
	case EROFS:
		return erofs.Unmount(p.dir)
	}
	return nil
}
