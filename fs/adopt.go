package fs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
	"github.com/mica-snapshotter/mica/index"
)

// heldLayers returns the layers that held mounts wait for.
func (t *Table) heldLayers() []digest.Digest {
	t.heldMu.Lock()
	defer t.heldMu.Unlock()
	return slices.Collect(maps.Keys(t.held))
}

// addHeld has a mount wait for its layer.
func (t *Table) addHeld(m *heldMount) {
	t.heldMu.Lock()
	defer t.heldMu.Unlock()
	t.held[m.state.Layer] = append(t.held[m.state.Layer], m)
}

// removeHeld returns the held mounts of a layer, which are the caller's alone from now on.
func (t *Table) removeHeld(ctx context.Context, d digest.Digest) []*heldMount {
	t.heldMu.Lock()
	defer t.heldMu.Unlock()
	mounts := t.held[d]
	delete(t.held, d)
	for _, m := range mounts {
		if m.lost == nil {
			continue
		}
		if err := m.lost.Leave(); err != nil {
			t.log.WarnContext(ctx, "a lost layer is back", "layer", d, "err", err)
		}
		m.lost = nil
	}
	return mounts
}

// adoptHeld serves the layer's held mounts. What cannot be adopted for want of descriptors or
// memory waits on.
func (l *openLayer) adoptHeld(ctx context.Context) {
	for _, m := range l.t.removeHeld(ctx, l.digest) {
		s, err := l.adopt(ctx, m)
		if scarce(err) {
			l.t.log.WarnContext(ctx, "readers of a mount of a former micad wait on",
				"layer", l.digest, "err", err)
			l.t.addHeld(m)
			continue
		}
		if err != nil {
			l.t.log.ErrorContext(ctx, "a mount of a former micad cannot be served any more",
				"layer", l.digest, "dir", m.state.Mount.Dir, "err", err)
			l.t.forgetKept(ctx, m.held.Name)
		} else {
			l.t.watch(s)
			l.reattach(ctx, s, &m.state)
		}
		if err := closeHeld(m.held); err != nil {
			l.t.log.WarnContext(ctx, "close what the keeper has handed out", "name", m.held.Name,
				"err", err)
		}
	}
}

// scarce says that err comes of a want of descriptors or memory, which passes.
func scarce(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// adopt serves one held mount.
func (l *openLayer) adopt(ctx context.Context, m *heldMount) (*served, error) {
	st := &m.state
	f, err := fuse.Duplicate(m.held.Files[0])
	if err != nil {
		return nil, err
	}
	s := &served{name: m.held.Name, device: st.Mount.Device}
	o := l.t.fuse()
	x, err := l.sameAs(st)
	switch {
	case scarce(err):
		return nil, errors.Join(err, f.Close())
	case err != nil:
		l.t.log.ErrorContext(ctx, "a layer is not what its readers have seen so far: they get "+
			"errors", "layer", l.digest, "err", err)
		s.Mount, err = fuse.AdoptLost(ctx, f, st.Mount, o)
	case st.Mount.Kind == fuse.KindTree:
		s.Mount, err = fuse.AdoptTree(ctx, f, st.Mount, x, l.bytes(), o)
	default:
		s.Mount, err = fuse.AdoptDevice(ctx, f, st.Mount, l.bytes(), o)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// sameAs returns the index that the mount shows, after a check that the layer is the one that it
// was made of: for a device, its tar; for a tree, the very same index, whose positions the kernel
// knows as inodes.
func (l *openLayer) sameAs(st *heldState) (*index.Layer, error) {
	if got := l.index.Header().DiffID; got != st.DiffID {
		return nil, fmt.Errorf("its tar is %s instead of %s", got, st.DiffID)
	}
	if st.Mount.Kind != fuse.KindTree {
		return l.index, nil
	}
	if filepath.Base(st.Variant) != st.Variant && st.Variant != "" {
		return nil, fmt.Errorf("variant %q", st.Variant)
	}
	f, err := os.Open(l.store.IndexPath() + st.Variant)
	if err != nil {
		return nil, err
	}
	// The mount keeps the file for as long as it lives.
	sum, err := headSum(f)
	if err == nil && sum != st.Index {
		err = errors.New("it has another index now")
	}
	var x *index.Layer
	if err == nil {
		x, err = openVariant(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return x, nil
}

// reattach makes an adopted mount the layer's own where it lies at the layer's place. One that lies
// elsewhere, out of the file tree mostly, is served for those who use it still.
func (l *openLayer) reattach(ctx context.Context, s *served, st *heldState) {
	dir := l.deviceDir()
	if st.Mount.Kind == fuse.KindTree {
		dir = filepath.Join(l.t.o.Root, mountsName, filepath.Base(st.Mount.Dir))
	}
	mounts, err := mountinfo.At(dir)
	if err != nil {
		l.t.log.WarnContext(ctx, "a mount of a former micad is not found", "dir", dir, "err", err)
	}
	there := slices.ContainsFunc(mounts, func(m mountinfo.Mount) bool {
		return m.Type == fuse.Type && m.Device == s.device
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case there && st.Mount.Kind == fuse.KindTree && l.points[dir] == nil:
		l.points[dir] = &mountPoint{dir: dir, index: l.store.IndexPath() + st.Variant, mode: FUSE,
			tree: s}
	case there && st.Mount.Kind == fuse.KindDevice && l.device == nil:
		l.device = s
	default:
		l.detached = append(l.detached, s)
	}
}
