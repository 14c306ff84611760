package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
	"github.com/mica-snapshotter/mica/index"
)

// mountPoint is a mount mountPoint of a layer. There is one for each spot.
type mountPoint struct {
	dir   string
	index string  // path of the index file that is mounted
	mode  Mode    // how dir shows the layer; "": not known
	id    int     // of the mount that is visible there; 0: not known
	tree  *served // fuse mode; what is mounted over it, when the layer is complete, does not end it
}

// deviceDir is where the layer's device is mounted in erofs mode.
func (v *openLayer) deviceDir() string { return filepath.Join(v.t.o.Root, devicesName, v.key) }

// mount returns the directory that shows the layer over the layers below it: at, unless that is
// "". What an earlier run has mounted there stays if it is what it should be; all else that lies
// there goes.
func (v *openLayer) mount(ctx context.Context, at string, below []Below) (string, error) {
	c, err := v.changes(below, at != "")
	if err != nil {
		return "", err
	}
	s := spotOf(v.digest, below)
	if !s.lowest {
		s.variant = c.name()
	}
	return v.mountSpot(ctx, s, c, at)
}

// spotOf returns the spot of a layer over others, as long as nothing is known that they change.
func spotOf(d digest.Digest, below []Below) spot {
	s := spot{layer: d, lowest: len(below) == 0}
	for _, b := range below {
		if b.Digest == d {
			s.copy++
		}
	}
	return s
}

// mountSpot is mount, of what is known to be changed.
func (v *openLayer) mountSpot(ctx context.Context, s spot, c *changes, at string) (string, error) {
	v.t.mountsMu.RLock()
	defer v.t.mountsMu.RUnlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stage() == stageClosed {
		return "", errors.New("layer was removed")
	}
	if err := v.writeVariant(c); err != nil {
		return "", err
	}
	dir, index, err := v.mountPointLocked(ctx, s, at)
	if err != nil {
		return "", err
	}
	p := v.points[dir]
	if p == nil || p.index != index {
		if p != nil && p.tree != nil {
			v.detached = append(v.detached, p.tree)
		}
		p = &mountPoint{dir: dir, index: index}
	}
	if p.mode, err = v.look(p); err != nil {
		return "", err
	}
	if err := v.show(ctx, p); err != nil {
		return "", err
	}
	v.points[dir] = p
	p.id, err = mountinfo.ID(p.dir)
	return p.dir, err
}

// mountPointLocked returns the mount point of a spot, which is at unless that is "", and the index
// file that is mounted there.
func (v *openLayer) mountPointLocked(
	ctx context.Context, s spot, at string,
) (dir, index string, err error) {
	index = v.shownAt(s)
	if at == "" {
		dir, err = v.t.names.path(s)
		return dir, index, err
	}
	owner, err := v.t.names.assign(at, s)
	if err != nil {
		return "", "", err
	}
	if other := v.shownAt(owner); other != index {
		if _, err := os.Stat(other); err == nil {
			v.t.log.WarnContext(ctx,
				"a directory of this layer shows what it does in another image, because an "+
					"earlier version of Mica has mounted it for both: remove the image and pull "+
					"it again",
				"layer", v.digest, "dir", at)
			index = other
		}
	}
	return at, index, nil
}

// Displaced returns those of the directories that do not show any more what they showed when Mount
// returned them last: they were unmounted, or something else lies on them.
func (t *Table) Displaced(dirs []string) []string {
	asked := map[digest.Digest]bool{}
	for _, dir := range dirs {
		asked[t.names.spot(dir).layer] = true
	}
	ids := map[string]int{}
	for _, v := range t.opened() {
		if !asked[v.digest] {
			continue // it may be busy
		}
		v.mu.Lock()
		for _, p := range v.points {
			ids[p.dir] = p.id
		}
		v.mu.Unlock()
	}
	var wrong []string
	for _, dir := range dirs {
		if id, err := mountinfo.ID(dir); err != nil || id != ids[dir] {
			wrong = append(wrong, dir)
		}
	}
	return wrong
}

// show mounts what is missing at a point whose mode is what lies there.
func (v *openLayer) show(ctx context.Context, p *mountPoint) error {
	alone := v.stage() == stageLocal
	if p.mode != "" && (p.mode == Local || !alone) {
		return nil
	}
	k, err := v.t.kernel()
	if err != nil {
		return err
	}
	if p.mode != "" {
		if k.complete != Local {
			return nil
		}
		if err := p.mountLocal(v, k); err != nil {
			v.t.log.WarnContext(ctx, "complete layer stays served by micad", "layer", v.digest,
				"dir", p.dir, "err", err)
		}
		return nil
	}
	if p.tree != nil {
		v.detached, p.tree = append(v.detached, p.tree), nil
	}
	if err := v.t.clean(p.dir); err != nil {
		return err
	}
	if alone && k.complete == Local {
		return p.mountLocal(v, k)
	}
	return p.mountLazy(ctx, v, k)
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

// localReadAhead is what the kernel reads ahead in a complete layer, bytes. Its reads go past the
// page cache of the store's file, so that what is on the way is all that keeps the disk busy: with
// half of it, sequential reads are slower than those of an unpacked layer. A lazy layer has half of
// it: there what is read in vain is fetched in vain.
const localReadAhead = 2 << 20

// mountLocal mounts EROFS over the store's own file. It takes the place of a lazy EROFS, so that
// what that has of the kernel, two loop devices perhaps, is free when the last who uses it has
// gone. Over a FUSE mount, and where the kernel cannot exchange mounts, it goes over what is there.
func (p *mountPoint) mountLocal(v *openLayer, k kernel) error {
	if p.mode == EROFS && !v.t.fixed.Load() {
		done, err := v.exchange(p, func(q *mountPoint) error { return q.mountLocal(v, k) })
		if done || err != nil {
			return err
		}
	}
	if _, err := erofs.Mount(p.index, v.store.DevicePath(), p.dir,
		erofs.Options{Backing: k.localBy, ReadAhead: localReadAhead,
			Standalone: true}); err != nil {
		return err
	}
	p.mode = Local
	var err error
	p.id, err = mountinfo.ID(p.dir)
	return err
}

// mountLazy mounts a layer whose bytes come through the daemon.
func (p *mountPoint) mountLazy(ctx context.Context, v *openLayer, k kernel) error {
	if k.lazy == FUSE {
		return p.mountTree(ctx, v)
	}
	if v.device != nil && !v.device.alive() {
		v.device = nil
	}
	if v.device == nil {
		if err := v.mountDevice(ctx); err != nil {
			return err
		}
	}
	if _, err := v.t.mounter.Mount(p.index, v.device.DevicePath(), p.dir,
		erofs.Options{Backing: k.lazyBy}); err != nil {
		return fmt.Errorf("mount EROFS over FUSE: %w", err)
	}
	p.mode = EROFS
	return nil
}

// fuse returns the options of all FUSE mounts.
func (t *Table) fuse() fuse.Options {
	return fuse.Options{Log: t.log, Memory: t.memory, Panicked: t.panicked}
}

// mountTree mounts the tree by FUSE.
func (p *mountPoint) mountTree(ctx context.Context, v *openLayer) error {
	f, err := os.Open(p.index)
	if err != nil {
		return err
	}
	// The mount keeps the file for as long as it lives.
	st := heldState{Layer: v.digest, DiffID: v.index.Header().DiffID,
		Variant: strings.TrimPrefix(p.index, v.store.IndexPath())}
	x, err := openVariant(f)
	if err == nil {
		st.Index, err = headSum(f)
	}
	var m *fuse.Mount
	if err == nil {
		m, err = fuse.MountTree(ctx, p.dir, x, v.bytes(), v.t.fuse())
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	p.tree, p.mode = v.t.keep(ctx, m, st), FUSE
	return nil
}

// mountDevice mounts the device by FUSE. EROFS mounts over a former one, which nobody serves any
// more, go before: so whatever EROFS lies at a point of the layer, without being standalone, is
// over this one.
func (v *openLayer) mountDevice(ctx context.Context) error {
	dirs, err := v.t.mountPoints(v.digest)
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
	if err := v.t.clean(v.deviceDir()); err != nil {
		return err
	}
	m, err := fuse.MountDevice(ctx, v.deviceDir(), v.bytes(), v.t.fuse())
	if err != nil {
		return err
	}
	v.device = v.t.keep(ctx, m, heldState{Layer: v.digest, DiffID: v.index.Header().DiffID})
	return nil
}

func openVariant(f *os.File) (*index.Layer, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return index.Open(f, st.Size())
}

// look says how a point's directory shows the layer now, "" if it does not: nothing is there, or
// not what it should be, or nobody serves it. It asks the mount table and EROFS, which answers from
// the index file; never FUSE, which would ask us.
func (v *openLayer) look(p *mountPoint) (Mode, error) {
	top, ok, err := mountinfo.Top(p.dir)
	if err != nil || !ok {
		return "", err
	}
	mode := EROFS
	switch {
	case top.Type == fuse.Type:
		if p.tree != nil && p.tree.alive() && p.tree.device == top.Device {
			return FUSE, nil
		}
		return "", nil
	case !erofs.Shows(top, p.index):
		return "", nil
	case erofs.Standalone(top):
		if v.stage() != stageLocal {
			return "", nil
		}
		mode = Local
	case v.device == nil || !v.device.alive():
		return "", nil
	}
	same, err := v.rootIs(p)
	if err != nil || !same {
		return "", err
	}
	return mode, nil
}

// rootIs says whether the root of the EROFS at a point is the root of its index.
func (v *openLayer) rootIs(p *mountPoint) (bool, error) {
	f, err := os.Open(p.index)
	if err != nil {
		return false, err
	}
	defer f.Close()
	x, err := openVariant(f)
	if err != nil {
		return false, err
	}
	root, err := x.Tree().Inode(x.Tree().Root())
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(p.dir, &st); err != nil {
		v.t.log.Warn("a mount does not answer and is replaced", "dir", p.dir, "err", err)
		return false, nil
	}
	return st.Ino == root.Nid && st.Mode == root.Mode && st.Uid == root.UID && st.Gid == root.GID &&
		time.Unix(st.Mtim.Unix()).Equal(root.Mtime), nil
}

// close takes a lazy mount away. Who still uses it gets errors: the daemon ends.
func (p *mountPoint) close(t *Table) error {
	var errs []error
	if p.mode == EROFS {
		errs = append(errs, erofs.Unmount(p.dir))
	}
	if p.tree != nil {
		errs = append(errs, t.end(t.ctx, p.tree))
	}
	return errors.Join(errs...)
}
