package snapshotter

import "testing"

// TestStarting: Layers are told of containers, and not of the layers of a pull.
func TestStarting(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	told := func(want int32, what string) {
		t.Helper()
		if got := layers.starts.Swap(0); got != want {
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
