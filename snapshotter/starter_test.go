package snapshotter

import (
	"sync/atomic"
	"testing"
)

// starters is fakeLayers that count the containers that start.
type starters struct {
	*fakeLayers
	count atomic.Int32
}

var _ Starter = (*starters)(nil)

func (s *starters) Starting() { s.count.Add(1) }

// TestStarting: Layers are told of containers, and not of the layers of a pull.
func TestStarting(t *testing.T) {
	layers := &starters{fakeLayers: newFakeLayers(t)}
	s := open(t, t.TempDir(), layers)
	told := func(want int32, what string) {
		t.Helper()
		if got := layers.count.Swap(0); got != want {
			t.Errorf("%s: told of %d starts, want %d", what, got, want)
		}
	}
	top := mustPull(t, s, imageOf("a", "base", "top"))
	told(0, "pull")
	if _, err := s.Prepare(t.Context(), "container", top); err != nil {
		t.Fatal(err)
	}
	told(1, "container")
	if _, err := s.Mounts(t.Context(), "container"); err != nil {
		t.Fatal(err)
	}
	told(1, "its task")
	if _, err := s.Prepare(t.Context(), "scratch", ""); err != nil {
		t.Fatal(err)
	}
	told(0, "a snapshot without layers")
}
