package snapshotter

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestLayersInUse(t *testing.T) {
	s := open(t, t.TempDir(), newFakeLayers(t))
	mustBe := func(what string, want ...digest.Digest) {
		t.Helper()
		got, err := s.LayersInUse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys,
			slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %v in use, want %v", what, keys, want)
		}
	}
	mustBe("before the first snapshot")
	a, b := imageOf("a", "base", "app"), imageOf("b", "base", "other")
	topA, topB := mustPull(t, s, a), mustPull(t, s, b)
	mustBe("only images")
	if _, err := s.Prepare(t.Context(), "container", topA); err != nil {
		t.Fatal(err)
	}
	mustBe("a container", a.layers...)
	if _, err := s.View(t.Context(), "view", topB); err != nil {
		t.Fatal(err)
	}
	mustBe("a container and a view", a.layers[0], a.layers[1], b.layers[1])
	users, err := s.Users(t.Context())
	if want := map[string][]string{a.ref: {"container"}, b.ref: {"view"}}; err != nil ||
		!reflect.DeepEqual(users, want) {
		t.Errorf("users %v, %v, want %v", users, err, want)
	}
	if err := s.Remove(t.Context(), "container"); err != nil {
		t.Fatal(err)
	}
	mustBe("a view", b.layers...)
	if err := s.Remove(t.Context(), "view"); err != nil {
		t.Fatal(err)
	}
	mustBe("afterwards")
}
