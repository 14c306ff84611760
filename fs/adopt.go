package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/keeper"
	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/mountinfo"
	"github.com/mica-snapshotter/mica/index"
)

// adoptParallel bounds the layers that are opened at once at the start.
const adoptParallel = 16

// adoptAll serves the mounts that a former process has left, without the network. Those of a layer
// that the store cannot open are kept aside: who reads them waits until Mount has brought the layer
// anew, and from the read deadline on gets EIO until then.
func (t *Table) adoptAll(ctx context.Context, all []keeper.Held) {
	layers := map[digest.Digest]bool{}
	for _, h := range all {
		m, err := readHeld(h)
		if err != nil {
			if !errors.Is(err, errUnused) {
				t.log.ErrorContext(ctx, "a mount of a former micad cannot be served any more",
					"name", h.Name, "err", err)
			}
			if err := closeHeld(h); err != nil {
				t.log.WarnContext(ctx, "close what the keeper has handed out", "name", h.Name,
					"err", err)
			}
			t.forgetKept(ctx, h.Name)
			continue
		}
		layers[m.state.Layer] = true
		t.held[m.state.Layer] = append(t.held[m.state.Layer], m)
	}
	var group errgroup.Group
	group.SetLimit(adoptParallel)
	for d := range layers {
		group.Go(func() error {
			if _, err := t.stored(Layer{Digest: d}); err != nil {
				t.log.ErrorContext(ctx, "a layer in use cannot be opened: its readers wait for it",
					"layer", d, "err", err)
			}
			return nil
		})
	}
	_ = group.Wait()
	t.goes(t.awaitHeld)
}

// The waits between two attempts to adopt what could not be adopted at the start.
const adoptFirst, adoptMost = time.Second, time.Minute

// awaitHeld tries to open the layers again whose held mounts nobody serves, until there are none:
// what was missing (descriptors, memory) comes back. The readers of those that are not back when
// the read deadline is over are answered then.
func (t *Table) awaitHeld(ctx context.Context) {
	deadline := t.o.ReadDeadline
	if deadline == 0 {
		deadline = layer.DefaultDeadline
	}
	for wait, over := adoptFirst, time.Now().Add(deadline); ; wait = min(2*wait, adoptMost) {
		if left := time.Until(over); left > 0 {
			sleep(ctx, min(wait, left))
		} else {
			sleep(ctx, wait)
		}
		left := t.unserved()
		if ctx.Err() != nil || len(left) == 0 {
			return
		}
		for d, mounts := range left {
			if v, err := t.stored(Layer{Digest: d}); err == nil {
				v.adoptHeld(ctx) // does nothing where stored has opened the layer, and adopted them
			} else {
				t.log.DebugContext(ctx, "a layer in use cannot be opened", "layer", d, "err", err)
			}
			if time.Now().Before(over) {
				continue
			}
			for _, m := range mounts {
				if err := m.lose(ctx, t); err != nil {
					t.log.ErrorContext(ctx, "readers of a lost layer hang", "layer", d, "err", err)
				}
			}
		}
	}
}

// unserved returns the held mounts of layers that are not open.
func (t *Table) unserved() map[digest.Digest][]*heldMount {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := make(map[digest.Digest][]*heldMount, len(t.held))
	for d, list := range t.held {
		left[d] = slices.Clone(list)
	}
	return left
}

// lose has all requests of the mount fail from now on, unless somebody else has taken it.
func (m *heldMount) lose(ctx context.Context, t *Table) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost != nil || m.taken {
		return nil
	}
	f, err := fuse.Duplicate(m.held.Files[0])
	if err != nil {
		return err
	}
	m.lost, err = fuse.AdoptLost(ctx, f, m.state.Mount, t.fuse())
	return err
}

// takeHeld returns the mounts of a layer that wait for it, which are the caller's from now on.
func (t *Table) takeHeld(d digest.Digest) []*heldMount {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.held[d]
	delete(t.held, d)
	return list
}

// take ends the answers that the layer is lost: the mount is the caller's alone.
func (m *heldMount) take() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.taken = true
	if m.lost == nil {
		return nil
	}
	lost := m.lost
	m.lost = nil
	return lost.Leave()
}

// giveBack has a mount wait for its layer again.
func (t *Table) giveBack(m *heldMount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.taken = false
	t.held[m.state.Layer] = append(t.held[m.state.Layer], m)
}

// giveUpHeld gives up the held mounts of layers that nobody has asked for, or of all.
func (t *Table) giveUpHeld(ctx context.Context, all bool) error {
	t.mu.Lock()
	var left []*heldMount
	for d, list := range t.held {
		if all || !t.claims.wanted[d] {
			left = append(left, list...)
			delete(t.held, d)
		}
	}
	t.mu.Unlock()
	var errs []error
	for _, m := range left {
		errs = append(errs, m.take(), m.close())
		if !all {
			t.log.WarnContext(ctx, "a mount of a layer that is not known any more ends",
				"layer", m.state.Layer)
			t.forgetKept(ctx, m.held.Name)
			errs = append(errs, fuse.Detach(m.state.Mount.Dir))
		}
	}
	return errors.Join(errs...)
}

// adoptHeld serves the layer's held mounts. What cannot be adopted for want of descriptors or
// memory waits on.
func (v *openLayer) adoptHeld(ctx context.Context) {
	for _, m := range v.t.takeHeld(v.digest) {
		if err := m.take(); err != nil {
			v.t.log.WarnContext(ctx, "a lost layer is back", "layer", v.digest, "err", err)
		}
		s, err := v.adopt(ctx, m)
		if scarce(err) {
			v.t.log.WarnContext(ctx, "readers of a mount of a former micad wait on",
				"layer", v.digest, "err", err)
			v.t.giveBack(m)
			continue
		}
		if err != nil {
			v.t.log.ErrorContext(ctx, "a mount of a former micad cannot be served any more",
				"layer", v.digest, "dir", m.state.Mount.Dir, "err", err)
			v.t.forgetKept(ctx, m.held.Name)
		} else {
			v.t.watch(s)
			v.reattach(ctx, s, &m.state)
		}
		if err := m.close(); err != nil {
			v.t.log.WarnContext(ctx, "close what the keeper has handed out", "name", m.held.Name,
				"err", err)
		}
	}
}

// scarce says that err comes of a want of descriptors or memory, which passes.
func scarce(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// adopt serves one held mount.
func (v *openLayer) adopt(ctx context.Context, m *heldMount) (*served, error) {
	st := &m.state
	f, err := fuse.Duplicate(m.held.Files[0])
	if err != nil {
		return nil, err
	}
	s := &served{name: m.held.Name, device: st.Mount.Device}
	o := v.t.fuse()
	x, err := v.sameAs(st)
	switch {
	case scarce(err):
		return nil, errors.Join(err, f.Close())
	case err != nil:
		v.t.log.ErrorContext(ctx, "a layer is not what its readers have seen so far: they get "+
			"errors", "layer", v.digest, "err", err)
		s.Mount, err = fuse.AdoptLost(ctx, f, st.Mount, o)
	case st.Mount.Kind == fuse.KindTree:
		s.Mount, err = fuse.AdoptTree(ctx, f, st.Mount, x, v.bytes(), o)
	default:
		s.Mount, err = fuse.AdoptDevice(ctx, f, st.Mount, v.bytes(), o)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// sameAs returns the index that the mount shows, after a check that the layer is the one that it
// was made of: for a device, its tar; for a tree, the very same index, whose positions the kernel
// knows as inodes.
func (v *openLayer) sameAs(st *heldState) (*index.Layer, error) {
	if got := v.index.Header().DiffID; got != st.DiffID {
		return nil, fmt.Errorf("its tar is %s instead of %s", got, st.DiffID)
	}
	if st.Mount.Kind != fuse.KindTree {
		return v.index, nil
	}
	if filepath.Base(st.Variant) != st.Variant && st.Variant != "" {
		return nil, fmt.Errorf("variant %q", st.Variant)
	}
	f, err := os.Open(v.store.IndexPath() + st.Variant)
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

// reattach makes an adopted mount the layer's own where it lies at the layer's reattach. One that lies
// elsewhere, out of the file tree mostly, is served for those who use it still.
func (v *openLayer) reattach(ctx context.Context, s *served, st *heldState) {
	dir := v.deviceDir()
	if st.Mount.Kind == fuse.KindTree {
		dir = filepath.Join(v.t.o.Root, mountsName, filepath.Base(st.Mount.Dir))
	}
	there := false
	mounts, err := mountinfo.At(dir)
	if err != nil {
		v.t.log.WarnContext(ctx, "a mount of a former micad is not found", "dir", dir, "err", err)
	}
	for _, m := range mounts {
		there = there || m.Type == fuse.Type && m.Device == s.device
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case there && st.Mount.Kind == fuse.KindTree && v.points[dir] == nil:
		v.points[dir] = &mountPoint{dir: dir, index: v.store.IndexPath() + st.Variant, mode: FUSE,
			tree: s}
	case there && st.Mount.Kind == fuse.KindDevice && v.device == nil:
		v.device = s
	default:
		v.detached = append(v.detached, s)
	}
}
