package fs

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// demand says who may have a layer: whoever has asked for it by Mount, until Remove; and the
// removal that is under way. Guarded by Table.mu.
type demand struct {
	wanted   map[digest.Digest]bool
	removing map[digest.Digest]chan struct{} // closed when the removal has ended
}

// want notes that a layer is wanted by a caller of Mount. It waits for a sweep that is removing it.
func (t *Table) want(ctx context.Context, d digest.Digest) error {
	for {
		t.mu.Lock()
		gone := t.claims.removing[d]
		if gone == nil {
			t.claims.wanted[d] = true
			t.mu.Unlock()
			return nil
		}
		t.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Sweep removes the layers that nobody has asked for: those that were brought in advance for a pull
// that was given up, in this run or an earlier one. After a restart, call it when all layers that
// are in use have been asked for again.
func (t *Table) Sweep(ctx context.Context) error {
	all, err := t.store.Layers()
	if err != nil {
		return fmt.Errorf("sweep layers: %w", err)
	}
	return errors.Join(t.sweep(ctx, all), t.sweepMounts(ctx))
}

// sweep removes those of the layers that nobody has asked for and that no pull is bringing.
func (t *Table) sweep(ctx context.Context, layers []digest.Digest) error {
	var errs []error
	for _, d := range layers {
		t.mu.Lock()
		if t.claims.wanted[d] || t.claims.removing[d] != nil || t.pulls.Bringing()[d] || t.closed {
			t.mu.Unlock()
			continue
		}
		gone := make(chan struct{})
		t.claims.removing[d] = gone
		t.mu.Unlock()
		t.log.InfoContext(ctx, "layer was brought in advance and is not used", "layer", d)
		errs = append(errs, t.discard(ctx, d))
		t.mu.Lock()
		delete(t.claims.removing, d)
		t.mu.Unlock()
		close(gone)
	}
	return errors.Join(errs...)
}

// Remove unmounts a layer and frees its space; no error if it is not there. It must not
// run together with Mount of the same layer.
func (t *Table) Remove(ctx context.Context, d digest.Digest) error {
	t.mu.Lock()
	delete(t.claims.wanted, d)
	t.mu.Unlock()
	t.pulls.Settle(d, nil)
	t.pulls.Lost(d)
	return t.discard(ctx, d)
}

// discard takes a layer away, mounts and content.
func (t *Table) discard(ctx context.Context, d digest.Digest) error {
	if err := errors.Join(t.Unmount(d), t.names.forget(d), t.store.Remove(d)); err != nil {
		return fmt.Errorf("remove layer %s: %w", d, err)
	}
	t.log.InfoContext(ctx, "layer removed", "layer", d)
	return nil
}

// Unmount takes a layer's mounts away and keeps its content; no error if there are none. It must
// not run together with Mount of the same layer.
func (t *Table) Unmount(d digest.Digest) error {
	t.mu.Lock()
	s := t.entries[d]
	delete(t.entries, d)
	t.mu.Unlock()
	var err error
	if s != nil {
		err = s.close()
	}
	return errors.Join(err, t.clearMounts(d))
}
