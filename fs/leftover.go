package fs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

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
	for d := range t.claims.wanted {
		known[d] = true
	}
	for d := range t.claims.removing {
		known[d] = true
	}
	return known
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
