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

	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// want notes that a layer is wanted by a caller of Mount. It waits for a sweep that is removing it.
func (t *Table) want(ctx context.Context, d digest.Digest) error {
	for {
		t.mu.Lock()
		gone := t.demand.removing[d]
		if gone == nil {
			t.demand.wanted[d] = true
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
		if t.demand.wanted[d] || t.demand.removing[d] != nil || t.pulls.Bringing()[d] || t.closed {
			t.mu.Unlock()
			continue
		}
		gone := make(chan struct{})
		t.demand.removing[d] = gone
		t.mu.Unlock()
		t.log.InfoContext(ctx, "layer was brought in advance and is not used", "layer", d)
		errs = append(errs, t.discard(ctx, d))
		t.mu.Lock()
		delete(t.demand.removing, d)
		t.mu.Unlock()
		close(gone)
	}
	return errors.Join(errs...)
}

// sweepMounts takes away what former processes have mounted and left with the keeper, and that
// belongs to no layer of the table. Like Sweep it comes when all layers in use have been asked for.
func (t *Table) sweepMounts(ctx context.Context) error {
	errs := []error{t.giveUpHeld(ctx, false)}
	t.mountsMu.Lock() // nobody mounts meanwhile
	defer t.mountsMu.Unlock()
	known := t.known()
	keys := map[string]bool{}
	for d := range known {
		keys[mountKey(d)] = true
	}
	inUse := func(path string) bool {
		// Of a device, or a mount point of a former version.
		key, _, _ := strings.Cut(filepath.Base(path), "-")
		return keys[key] || known[t.names.spot(path).layer]
	}
	for _, name := range []string{mountsName, devicesName} {
		entries, err := os.ReadDir(filepath.Join(t.o.Root, name))
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, e := range entries {
			dir := filepath.Join(t.o.Root, name, e.Name())
			if inUse(dir) {
				continue
			}
			t.log.InfoContext(ctx, "mount point of no layer is removed", "dir", dir)
			errs = append(errs, unmount(dir), os.Remove(dir))
		}
	}
	for _, d := range t.names.layers() {
		if !known[d] {
			errs = append(errs, t.names.forget(d))
		}
	}
	return errors.Join(errs...)
}

// known returns all layers that have a place in the table.
func (t *Table) known() map[digest.Digest]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := map[digest.Digest]bool{}
	for d := range t.entries {
		known[d] = true
	}
	for d := range t.pulls.Bringing() {
		known[d] = true
	}
	for d := range t.demand.wanted {
		known[d] = true
	}
	for d := range t.demand.removing {
		known[d] = true
	}
	return known
}

// Remove unmounts a layer and frees its space; no error if it is not there. It must not
// run together with Mount of the same layer.
func (t *Table) Remove(ctx context.Context, d digest.Digest) error {
	t.mu.Lock()
	delete(t.demand.wanted, d)
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
	e := t.entries[d]
	delete(t.entries, d)
	t.mu.Unlock()
	var errs []error
	if e != nil {
		if l, err := e.open(); err == nil {
			errs = append(errs, l.close())
		}
	}
	return errors.Join(append(errs, t.clearMounts(d))...)
}

// cleanUp removes the temporary files that a process left which ended before it could: those that
// were written last before began.
func (t *Table) cleanUp(ctx context.Context, began time.Time) {
	for _, pattern := range []string{"trees-*", "layers/*/*/" + atomicfile.Leftovers} {
		names, err := filepath.Glob(filepath.Join(t.o.Root, pattern))
		for _, name := range names {
			st, statErr := os.Lstat(name)
			if statErr == nil && st.Mode().IsRegular() && st.ModTime().Before(began) {
				err = errors.Join(err, os.Remove(name))
			}
		}
		if err != nil {
			t.log.WarnContext(ctx, "temporary files are left over", "dir", t.o.Root, "err", err)
		}
	}
}
