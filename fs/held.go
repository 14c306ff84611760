package fs

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/keeper"
	"github.com/mica-snapshotter/mica/fs/layer"
)

// adoptParallel bounds the layers that are opened at once at the start.
const adoptParallel = 16

// adoptAll serves the mounts that a former process has left, without the network. Those of a layer
// that the store cannot open are kept aside: who reads them waits until Mount has brought the layer
// anew, and from the read deadline on gets EIO until then.
func (t *Table) adoptAll(ctx context.Context, all []keeper.Held) {
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
		t.addHeld(m)
	}
	var group errgroup.Group
	group.SetLimit(adoptParallel)
	for _, d := range t.heldLayers() {
		group.Go(func() error {
			if _, err := t.stored(d, ""); err != nil {
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
	over := time.Now().Add(cmp.Or(t.o.ReadDeadline, layer.DefaultDeadline))
	for wait := adoptFirst; ; wait = min(2*wait, adoptMost) {
		left := time.Until(over)
		if left <= 0 {
			left = wait
		}
		sleep(ctx, min(wait, left))
		waiting := t.heldLayers()
		if ctx.Err() != nil || len(waiting) == 0 {
			return
		}
		for _, d := range waiting {
			if l, err := t.stored(d, ""); err == nil {
				l.adoptHeld(ctx) // does nothing where stored has opened the layer, and adopted them
			} else {
				t.log.DebugContext(ctx, "a layer in use cannot be opened", "layer", d, "err", err)
			}
			if time.Now().After(over) {
				if err := t.failHeld(ctx, d); err != nil {
					t.log.ErrorContext(ctx, "readers of a lost layer hang", "layer", d, "err", err)
				}
			}
		}
	}
}

// failHeld has all requests of a layer's held mounts fail until they are adopted.
func (t *Table) failHeld(ctx context.Context, d digest.Digest) error {
	t.heldMu.Lock()
	defer t.heldMu.Unlock()
	var errs []error
	for _, m := range t.held[d] {
		if m.lost != nil {
			continue
		}
		f, err := fuse.Duplicate(m.held.Files[0])
		if err == nil {
			m.lost, err = fuse.AdoptLost(ctx, f, m.state.Mount, t.fuse())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// giveUpHeld gives up the held mounts of layers that nobody has asked for, or of all.
func (t *Table) giveUpHeld(ctx context.Context, all bool) error {
	var errs []error
	for _, d := range t.heldLayers() {
		t.mu.Lock()
		wanted := t.demand.wanted[d]
		t.mu.Unlock()
		if wanted && !all {
			continue
		}
		for _, m := range t.removeHeld(ctx, d) {
			errs = append(errs, closeHeld(m.held))
			if !all {
				t.log.WarnContext(ctx, "a mount of a layer that is not known any more ends",
					"layer", d)
				t.forgetKept(ctx, m.held.Name)
				errs = append(errs, fuse.Detach(m.state.Mount.Dir))
			}
		}
	}
	return errors.Join(errs...)
}
