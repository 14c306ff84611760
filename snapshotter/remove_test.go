package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

func TestRemoveLayer(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	a, b := imageOf("a", "base", "shared"), imageOf("b", "other", "shared") // on different parents
	topA, topB := mustPull(t, s, a), mustPull(t, s, b)
	base := servedPrefix + a.chains[0].String()
	remove := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := s.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(layers.removals()); n != 0 && names[0] != topB {
			t.Errorf("Remove gave up %d layers before Cleanup", n)
		}
		if err := s.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), base); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Remove of a parent: %v", err)
	}
	remove(topA, base)
	if got := layers.removals(); !slices.Equal(got, a.layers[:1]) {
		t.Errorf("removed %v, want %v: the other is in use", got, a.layers[:1])
	}
	remove(topB)
	if layers.isMounted(b.layers[1]) || !layers.isMounted(b.layers[0]) {
		t.Errorf("shared layer mounted: %v, other: %v", layers.isMounted(b.layers[1]),
			layers.isMounted(b.layers[0]))
	}
	marks, err := s.markedLayers()
	if err != nil || !slices.Equal(marks, b.layers[:1]) {
		t.Errorf("marked layers %v, %v", marks, err)
	}
}

func TestCleanupOfNothing(t *testing.T) {
	s := open(t, t.TempDir(), newFakeLayers(t))
	if err := errors.Join(s.Cleanup(t.Context()), s.Restore(t.Context())); err != nil {
		t.Error(err)
	}
	if n := snapshotCount(t, s); n != 0 {
		t.Errorf("%d snapshots", n)
	}
}

func TestCleanupDirectories(t *testing.T) {
	s := open(t, t.TempDir(), newFakeLayers(t))
	for _, key := range []string{"kept", "removed"} {
		if _, err := s.Prepare(t.Context(), key, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(s.snapshotsDir(), "new-interrupted", "fs"),
		0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(t.Context(), "removed"), s.Cleanup(t.Context())); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.snapshotsDir())
	if err != nil || len(entries) != 1 || entries[0].Name() != "1" {
		t.Errorf("directories %v, %v", entries, err)
	}
}

// TestOrphans: layers that a killed process mounted for nothing, or did not come to remove, go
// after the restart.
func TestOrphans(t *testing.T) {
	img := imageOf("image", "base", "app")
	root, layers := t.TempDir(), newFakeLayers(t)
	s := open(t, root, layers)
	top := mustPull(t, s, img)
	interrupted := digest.FromString("interrupted")
	if err := errors.Join(s.markServed(interrupted), s.Remove(t.Context(), top),
		s.Close()); err != nil {
		t.Fatal(err)
	}
	layers.restart()
	s = open(t, root, layers)
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, want := layers.removals(), []digest.Digest{interrupted, img.layers[1]}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("removed %v, want %v", got, want)
	}
	if !layers.isMounted(img.layers[0]) {
		t.Error("the layer in use is not mounted")
	}
}

// refusingLayers cannot remove at first.
type refusingLayers struct {
	*fakeLayers
	refuse error
}

func (l *refusingLayers) Remove(ctx context.Context, d digest.Digest) error {
	return errors.Join(l.refuse, l.fakeLayers.Remove(ctx, d))
}

func TestRemoveIsTriedAgain(t *testing.T) {
	layers := &refusingLayers{newFakeLayers(t), errors.New("busy")}
	s := open(t, t.TempDir(), layers)
	if err := s.Remove(t.Context(), mustPull(t, s, imageOf("image", "base"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); !errors.Is(err, layers.refuse) {
		t.Errorf("Cleanup = %v", err)
	}
	layers.refuse = nil
	if err := s.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(layers.removals()); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
	if err := s.Cleanup(t.Context()); err != nil || len(layers.removals()) != 2 {
		t.Errorf("Cleanup after success: %v, %v", err, layers.removals())
	}
}

// TestHeldLayerStays: Cleanup leaves a layer alone that is mounted for a snapshot that is not
// committed yet.
func TestHeldLayerStays(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	layers.hook(func(ctx context.Context, _ Layer) (Mounted, error) {
		return Mounted{}, errors.Join(errDefault, s.Cleanup(ctx))
	})
	img := numbered("image", 2)
	mustPull(t, s, img)
	if removed := layers.removals(); len(removed) != 0 {
		t.Errorf("removed %v", removed)
	}
}

func TestHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h layerUses
		d := digest.FromString("layer")
		if err := errors.Join(h.acquire(t.Context(), d), h.acquire(t.Context(), d)); err != nil {
			t.Fatal(err)
		}
		h.release(d)
		if h.beginRemoval(d) {
			t.Fatal("claimed in spite of a user")
		}
		h.release(d)
		if !h.beginRemoval(d) || h.beginRemoval(d) {
			t.Fatal("not claimed by one")
		}
		canceled, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.acquire(canceled, d); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("acquire = %v while the layer is being removed", err)
		}
		acquired := false
		go func() {
			acquired = h.acquire(t.Context(), d) == nil
		}()
		synctest.Wait()
		if acquired {
			t.Error("acquired while the layer is being removed")
		}
		h.endRemoval(d)
		synctest.Wait()
		if !acquired {
			t.Error("not acquired afterwards")
		}
		h.release(d)
		if len(h.m) != 0 {
			t.Errorf("left over: %v", h.m)
		}
	})
}
