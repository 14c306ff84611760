package fs

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// mount returns the directory that shows the layer over the layers below it: at, unless that is
// "". What an earlier run has mounted there stays if it is what it should be; all else that lies
// there goes.
func (l *openLayer) mount(ctx context.Context, at string, below []Below) (string, error) {
	c, err := l.changes(below, at != "")
	if err != nil {
		return "", err
	}
	s := spotOf(l.digest, below)
	if !s.lowest {
		s.variant = c.name()
	}
	return l.mountSpot(ctx, s, c, at)
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

// mountSpot is mount, with what is known to be changed.
func (l *openLayer) mountSpot(ctx context.Context, s spot, c *changes, at string) (string, error) {
	l.t.mountsMu.RLock()
	defer l.t.mountsMu.RUnlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.stage()
	if now == stageClosed {
		return "", errors.New("layer was removed")
	}
	index, err := l.writeVariant(s, c)
	if err != nil {
		return "", err
	}
	dir := at
	if at == "" {
		dir, err = l.t.names.path(s)
	} else {
		index, err = l.assign(ctx, at, s, index)
	}
	if err != nil {
		return "", err
	}
	p := l.points[dir]
	if p == nil || p.index != index {
		if p != nil && p.tree != nil {
			l.detached = append(l.detached, p.tree)
		}
		p = &mountPoint{dir: dir, index: index}
	}
	if p.mode, err = l.look(p, now); err != nil {
		return "", err
	}
	if err := l.show(ctx, p, now); err != nil {
		return "", err
	}
	l.points[dir] = p
	p.id, err = mountinfo.ID(p.dir)
	return p.dir, err
}

// assign has a spot keep the mount point that a snapshot has of it, and returns the index file that
// is mounted there, for the one that the spot has.
func (l *openLayer) assign(ctx context.Context, at string, s spot, index string) (string, error) {
	owner, err := l.t.names.assign(at, s)
	if err != nil {
		return "", err
	}
	if other := l.shownAt(owner); other != index {
		if _, err := os.Stat(other); err == nil {
			l.t.log.WarnContext(ctx,
				"a directory of this layer shows what it does in another image, because an "+
					"earlier version of Mica has mounted it for both: remove the image and pull "+
					"it again",
				"layer", l.digest, "dir", at)
			index = other
		}
	}
	return index, nil
}

// look says how a point's directory shows the layer now, "" if it does not: nothing is there, or
// not what it should be, or nobody serves it. It asks the mount table and EROFS, which answers from
// the index file; never FUSE, which would ask us.
func (l *openLayer) look(p *mountPoint, now stage) (Mode, error) {
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
		if now != stageLocal {
			return "", nil
		}
		mode = Local
	case l.device == nil || !l.device.alive():
		return "", nil
	}
	same, err := l.rootIs(p)
	if err != nil || !same {
		return "", err
	}
	return mode, nil
}

// rootIs says whether the root of the EROFS at a point is the root of its index.
func (l *openLayer) rootIs(p *mountPoint) (bool, error) {
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
		l.t.log.Warn("a mount does not answer and is replaced", "dir", p.dir, "err", err)
		return false, nil
	}
	return st.Ino == root.Nid && st.Mode == root.Mode && st.Uid == root.UID && st.Gid == root.GID &&
		time.Unix(st.Mtim.Unix()).Equal(root.Mtime), nil
}

// show mounts what is missing at a point whose mode is what lies there.
func (l *openLayer) show(ctx context.Context, p *mountPoint, now stage) error {
	alone := now == stageLocal
	if p.mode != "" && (p.mode == Local || !alone) {
		return nil
	}
	k, err := l.t.kernel()
	if err != nil {
		return err
	}
	if p.mode != "" {
		if k.complete != Local {
			return nil
		}
		if err := p.mountLocal(l, k); err != nil {
			l.t.log.WarnContext(ctx, "complete layer stays served by micad", "layer", l.digest,
				"dir", p.dir, "err", err)
		}
		return nil
	}
	if p.tree != nil {
		l.detached, p.tree = append(l.detached, p.tree), nil
	}
	if err := l.t.clean(p.dir); err != nil {
		return err
	}
	if alone && k.complete == Local {
		return p.mountLocal(l, k)
	}
	return p.mountLazy(ctx, l, k)
}

// Displaced returns those of the directories that do not show any more what they showed when Mount
// returned them last: they were unmounted, or something else lies on them.
func (t *Table) Displaced(dirs []string) []string {
	asked := map[digest.Digest]bool{}
	for _, dir := range dirs {
		asked[t.names.spot(dir).layer] = true
	}
	ids := map[string]int{}
	for _, l := range t.opened(false) {
		if !asked[l.digest] {
			continue // it may be busy
		}
		l.mu.Lock()
		for _, p := range l.points {
			ids[p.dir] = p.id
		}
		l.mu.Unlock()
	}
	var wrong []string
	for _, dir := range dirs {
		if id, err := mountinfo.ID(dir); err != nil || id != ids[dir] {
			wrong = append(wrong, dir)
		}
	}
	return wrong
}
