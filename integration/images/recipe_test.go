package images

import (
	"bytes"
	"io"
	"path/filepath"
	"slices"
	"testing"
)

// A stored layer is the one that was made.
func TestCachedLayer(t *testing.T) {
	tar, err := Tar(Dir("a"), File("a/b", 0o644, []byte("content")))
	if err != nil {
		t.Fatal(err)
	}
	img, err := FromTars([]string{"/none"}, tar)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "layer")
	if _, err := loadLayer(path); err == nil {
		t.Fatal("loaded what does not exist")
	}
	if err := storeLayer(path, layers[0]); err != nil {
		t.Fatal(err)
	}
	loaded, err := loadLayers([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	again, err := assemble([]string{"/none"}, loaded)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Digest(); err != nil || got != want {
		t.Errorf("image %v, %v, want %v", got, err, want)
	}
	if n, err := Unpacked(again); err != nil || n != int64(len(tar)) {
		t.Errorf("unpacked %d bytes, %v, want %d", n, err, len(tar))
	}
	r, err := loaded[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, tar) {
		t.Errorf("%d bytes, %v: not the tar of %d", len(b), err, len(tar))
	}
}

// Recipes share layers up to the first step that differs, and none above it.
func TestRecipesShareLayers(t *testing.T) {
	a := Recipe{Steps: []Step{{"one", "x"}, {"two", "y"}, {"three", "z"}}}.paths("", "release")
	b := Recipe{Steps: []Step{{"one", "x"}, {"two", "Y"}, {"three", "z"}}}.paths("", "release")
	for i := range a {
		if same := a[i] == b[i]; same != (i < 2) {
			t.Errorf("layer %d: %s and %s", i, a[i], b[i])
		}
	}
	if other := (Recipe{}).paths("", "other"); slices.Contains(a, other[0]) {
		t.Error("two releases share a system")
	}
}
