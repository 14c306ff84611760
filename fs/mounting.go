package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
	"github.com/mica-snapshotter/mica/index"
)

// deviceDir is where the layer's device is mounted in erofs mode.
func (l *openLayer) deviceDir() string { return filepath.Join(l.t.o.Root, devicesName, l.key) }

// localReadAhead is what the kernel reads ahead in a complete layer, bytes. Its reads go past the
// page cache of the store's file, so that what is on the way is all that keeps the disk busy: with
// half of it, sequential reads are slower than those of an unpacked layer. A lazy layer has half of
// it: there what is read in vain is fetched in vain.
const localReadAhead = 2 << 20

// mountLocal mounts EROFS over the store's own file. It takes the place of a lazy EROFS, so that
// what that has of the kernel, two loop devices perhaps, is free when the last who uses it has
// gone. Over a FUSE mount, and where the kernel cannot exchange mounts, it goes over what is there.
func (p *mountPoint) mountLocal(l *openLayer, k kernel) error {
	if p.mode == EROFS && !l.t.fixed.Load() {
		done, err := l.exchange(p, func(q *mountPoint) error { return q.mountLocal(l, k) })
		if done || err != nil {
			return err
		}
	}
	if _, err := erofs.Mount(p.index, l.store.DevicePath(), p.dir,
		erofs.Options{Backing: k.localBy, ReadAhead: localReadAhead,
			Standalone: true}); err != nil {
		return err
	}
	p.mode = Local
	var err error
	p.id, err = mountinfo.ID(p.dir)
	return err
}

// exchange puts what mount makes, at a point that it is given, in the place of the uppermost mount
// of p, which those who use it keep. False: the kernel cannot do that, and all is as it was.
func (l *openLayer) exchange(p *mountPoint, mount func(*mountPoint) error) (done bool, err error) {
	dir := filepath.Join(l.t.o.Root, devicesName, l.key+".new")
	if err := l.t.clean(dir); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, erofs.Unmount(dir), os.Remove(dir)) }()
	q := &mountPoint{dir: dir, index: p.index}
	if err := mount(q); err != nil {
		return false, err
	}
	err = erofs.Replace(dir, p.dir)
	if errors.Is(err, unix.EINVAL) {
		l.t.fixed.Store(true) // Linux 6.5 can
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.mode = q.mode
	p.id, err = mountinfo.ID(p.dir)
	return true, err
}

// mountLazy mounts a layer whose bytes come through the daemon.
func (p *mountPoint) mountLazy(ctx context.Context, l *openLayer, k kernel) error {
	if k.lazy == FUSE {
		return p.mountTree(ctx, l)
	}
	if l.device != nil && !l.device.alive() {
		l.device = nil
	}
	if l.device == nil {
		if err := l.mountDevice(ctx); err != nil {
			return err
		}
	}
	if _, err := l.t.mounter.Mount(p.index, l.device.DevicePath(), p.dir,
		erofs.Options{Backing: k.lazyBy}); err != nil {
		return fmt.Errorf("mount EROFS over FUSE: %w", err)
	}
	p.mode = EROFS
	return nil
}

// mountTree mounts the tree by FUSE.
func (p *mountPoint) mountTree(ctx context.Context, l *openLayer) error {
	f, err := os.Open(p.index)
	if err != nil {
		return err
	}
	// The mount keeps the file for as long as it lives.
	st := heldState{Layer: l.digest, DiffID: l.index.Header().DiffID,
		Variant: strings.TrimPrefix(p.index, l.store.IndexPath())}
	x, err := openVariant(f)
	if err == nil {
		st.Index, err = headSum(f)
	}
	var m *fuse.Mount
	if err == nil {
		m, err = fuse.MountTree(ctx, p.dir, x, l.bytes(), l.t.fuse())
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	p.tree, p.mode = l.t.keep(ctx, m, st), FUSE
	return nil
}

// mountDevice mounts the device by FUSE. EROFS mounts over a former one, which nobody serves any
// more, go before: so whatever EROFS lies at a point of the layer, without being standalone, is
// over this one.
func (l *openLayer) mountDevice(ctx context.Context) error {
	dirs, err := l.t.mountPoints(l.digest)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		m, ok, err := mountinfo.Top(dir)
		if err != nil {
			return err
		}
		if ok && m.Type == erofs.Type && !erofs.Standalone(m) {
			if err := unmount(dir); err != nil {
				return err
			}
		}
	}
	if err := l.t.clean(l.deviceDir()); err != nil {
		return err
	}
	m, err := fuse.MountDevice(ctx, l.deviceDir(), l.bytes(), l.t.fuse())
	if err != nil {
		return err
	}
	l.device = l.t.keep(ctx, m, heldState{Layer: l.digest, DiffID: l.index.Header().DiffID})
	return nil
}

func openVariant(f *os.File) (*index.Layer, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return index.Open(f, st.Size())
}

// fuse returns the options of all FUSE mounts.
func (t *Table) fuse() fuse.Options {
	return fuse.Options{Log: t.log, Memory: t.memory, Panicked: t.panicked}
}

// clean makes dir an empty directory on which nothing is mounted: an earlier run may have left
// mounts there, of which lazy ones are dead.
func (t *Table) clean(dir string) error {
	if err := unmount(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o711)
}

// close takes a lazy mount away. Who still uses it gets errors: the daemon ends.
func (p *mountPoint) close(t *Table) error {
	var errs []error
	if p.mode == EROFS {
		errs = append(errs, p.unmount())
	}
	if p.tree != nil {
		errs = append(errs, t.end(t.ctx, p.tree))
	}
	return errors.Join(errs...)
}

// unmount takes the EROFS at the point out of the file tree. The mount table, which has all mounts
// of the machine, is read where something else is seen there alone: a daemon that ends would read
// it for each of its layers.
func (p *mountPoint) unmount() error {
	if id, err := mountinfo.ID(p.dir); err == nil && id == p.id {
		return erofs.UnmountTop(p.dir)
	}
	return erofs.Unmount(p.dir)
}

// mountPoints returns the mount points of a layer: those that have names, and those of former
// versions, which are named after the layer.
func (t *Table) mountPoints(d digest.Digest) ([]string, error) {
	former, err := filepath.Glob(filepath.Join(t.o.Root, mountsName, mountKey(d)+"*"))
	dirs := append(t.names.of(d), former...)
	slices.Sort(dirs)
	return slices.Compact(dirs), err
}

// clearMounts takes all mounts of a layer out of the file tree, and removes the mount points. Their
// names stay, for when the layer is mounted again.
func (t *Table) clearMounts(d digest.Digest) error {
	dirs, err := t.mountPoints(d)
	errs := []error{err}
	for _, dir := range append(dirs, filepath.Join(t.o.Root, devicesName, mountKey(d))) {
		errs = append(errs, removePoint(dir))
	}
	return errors.Join(errs...)
}

// removePoint removes a mount point, with what is mounted there, if it is there. It asks nothing of
// what is mounted, which may answer to nobody.
func removePoint(dir string) error {
	return errors.Join(unmount(dir), ignoreMissing(os.Remove(dir)))
}

// unmount takes all that Mica has mounted at dir out of the file tree: EROFS, and FUSE under it.
func unmount(dir string) error {
	return errors.Join(erofs.Unmount(dir), fuse.Detach(dir))
}

// device is the layer as the kernel's side sees it: as long as the tar.
type device struct {
	*layer.Layer
	size   int64
	record func(off, n int64)
	log    *slog.Logger
}

// Size returns the length of the uncompressed tar.
func (d device) Size() int64 { return d.size }

// ReadAt is what readers come through, and so where their reads are recorded.
func (d device) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.record(off, int64(len(p)))
	return d.timed(ctx, off, int64(len(p)), func() error { return d.Layer.ReadAt(ctx, p, off) })
}

// Fill is where a read of a FUSE file waits, before ReadAt.
func (d device) Fill(ctx context.Context, off, n int64) error {
	return d.timed(ctx, off, n, func() error { return d.Layer.Fill(ctx, off, n) })
}

// timed notes how long a read took, where that is asked for and worth it.
func (d device) timed(ctx context.Context, off, n int64, read func() error) error {
	if !d.log.Enabled(ctx, slog.LevelDebug) {
		return read()
	}
	start := time.Now()
	err := read()
	if took := time.Since(start); took >= time.Millisecond {
		d.log.DebugContext(ctx, "read waited", "off", off, "bytes", n, "took", took)
	}
	return err
}

func (l *openLayer) bytes() device {
	record := func(off, n int64) {
		l.wasRead()
		l.t.recordings.Read(l.digest, off, n)
		if f := l.t.o.Record; f != nil {
			f(l.digest, off, n)
		}
	}
	return device{l.data, l.index.Header().DeviceSize, record, l.t.log.With("layer", l.digest)}
}
