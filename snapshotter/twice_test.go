package snapshotter

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
)

// lowerOf returns the lower directories of an overlay mount.
func lowerOf(t *testing.T, mounts []mount.Mount) []string {
	t.Helper()
	for _, o := range mounts[len(mounts)-1].Options {
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return filepath.SplitList(dirs)
		}
	}
	t.Fatalf("no lower directories in %v", mounts)
	return nil
}

// TestDirectoryTwice: a directory that snapshots of a former version share comes once, where it
// is topmost.
func TestDirectoryTwice(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	img := imageOf("twice", "base", "x", "base", "base", "y", "x")
	var want []string
	for _, i := range []int{5, 4, 3} { // x, y, base
		want = append(want, layers.path(img.layers[i]))
	}
	mounts, err := s.Prepare(t.Context(), "container", mustPull(t, s, img))
	if err != nil {
		t.Fatal(err)
	}
	if got := lowerOf(t, mounts); !slices.Equal(got, want) {
		t.Errorf("lower directories %v, want %v", got, want)
	}
	dir := mountAt(t, mounts)
	if b, err := os.ReadFile(filepath.Join(dir,
		"all")); err != nil || string(b) != img.layers[5].String() {
		t.Errorf("the container sees %s, %v, want the topmost layer's %s", b, err, img.layers[5])
	}
	top := mustPull(t, s, imageOf("same", "base", "base", "base"))
	if mounts, err = s.View(t.Context(), "view", top); err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 1 || mounts[0].Type != "bind" ||
		mounts[0].Source != layers.path(img.layers[0]) {
		t.Errorf("view of one directory: %v", mounts)
	}
	mountAt(t, mounts)
}

// TestFormerDirectory: Layers hears where a layer has been before.
func TestFormerDirectory(t *testing.T) {
	img := imageOf("a", "base", "a")
	s, layers, _ := restarted(t, img)
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range layers.mountCalls() {
		if c.Dir != layers.path(c.Digest) {
			t.Errorf("layer %s is to be at %q, was at %s", c.Digest, c.Dir, layers.path(c.Digest))
		}
	}
}

// TestOneDevice: where layers are served, and only there, all files get one device.
func TestOneDevice(t *testing.T) {
	for given, want := range map[string]string{"": "xino=on", "xino=off": "xino=off",
		"volatile": "xino=on"} {
		var options []Option
		if given != "" {
			options = append(options, WithMountOptions(given))
		}
		s := open(t, t.TempDir(), newFakeLayers(t), options...)
		top := mustPull(t, s, imageOf("a", "base", "a"))
		container, err := s.Prepare(t.Context(), "container", top)
		if err != nil {
			t.Fatal(err)
		}
		view, err := s.View(t.Context(), "view", top)
		if err != nil {
			t.Fatal(err)
		}
		for _, mounts := range [][]mount.Mount{container, view} {
			var got []string
			for o := range strings.SplitSeq(strings.Join(mounts[0].Options, ","), ",") {
				if strings.HasPrefix(o, "xino") {
					got = append(got, o)
				}
			}
			if !slices.Equal(got, []string{want}) {
				t.Errorf("%q given: %v", given, mounts[0].Options)
			}
		}
	}
}
