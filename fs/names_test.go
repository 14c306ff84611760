package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/go-digest"
)

func openTestNames(t *testing.T, root string) *names {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, mountsName), 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := openNames(root)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *names) mustPath(t *testing.T, s spot) string {
	t.Helper()
	path, err := n.path(s)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNames: each spot has a mount point of its own, the same in the next run.
func TestNames(t *testing.T) {
	root := t.TempDir()
	a, b := digest.FromString("a"), digest.FromString("b")
	spots := []spot{
		{layer: a}, {layer: b}, {layer: a, lowest: true}, {layer: a, copy: 1}, {layer: a,
			variant: strings.Repeat("0f", 32)},
	}
	n := openTestNames(t, root)
	paths := map[spot]string{}
	for _, s := range spots {
		paths[s] = n.mustPath(t, s)
	}
	if got := len(slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, p := range paths {
			if !yield(p) {
				return
			}
		}
	}))); got != len(spots) {
		t.Errorf("%d names for %d spots: %v", got, len(spots), paths)
	}
	former := filepath.Join(root, mountsName, a.Encoded()[:24]+"-01234567")
	if got, err := n.assign(former, spots[4]); err != nil || got != spots[4] {
		t.Errorf("claim of a former version's mount point: %v, %v", got, err)
	}
	if err := os.Symlink("nonsense", filepath.Join(root, namesName, "odd")); err != nil {
		t.Fatal(err)
	}
	n = openTestNames(t, root)
	for _, s := range spots[:4] {
		if got := n.mustPath(t, s); got != paths[s] {
			t.Errorf("%v is at %s after a restart, was at %s", s, got, paths[s])
		}
	}
	if got, err := n.assign(former, spot{layer: a, variant: "other"}); err != nil ||
		got != spots[4] {
		t.Errorf("claim of a mount point that another image has: %v, %v", got, err)
	}
	for _, path := range []string{former, filepath.Join(root, "elsewhere")} {
		if got, err := n.assign(path, spot{layer: b}); err == nil {
			t.Errorf("claim of %s by another layer: %v", path, got)
		}
	}
	if got := n.of(a); len(got) != 5 || !slices.Contains(got, former) {
		t.Errorf("mount points of a layer: %v", got)
	}
	if err := n.forget(a); err != nil {
		t.Error(err)
	}
	n = openTestNames(t, root)
	if got := n.layers(); !slices.Equal(got, []digest.Digest{b}) {
		t.Errorf("layers with names: %v, want %s alone", got, b)
	}
	if got := n.spot(former); got != (spot{}) {
		t.Errorf("a name that was given up is of %v", got)
	}
}

// TestPage: overlayfs takes 500 layers, and containerd brings as many of ours into its one page
// of options.
func TestPage(t *testing.T) {
	const layers = 500 // OVL_MAX_STACK
	root := filepath.Join(testDir(t), "var", "lib", "micad")
	n := openTestNames(t, root)
	var lower []string
	for i := range layers {
		dir := n.mustPath(t, spot{layer: digest.FromString(fmt.Sprint(i)),
			variant: strings.Repeat("0f", 32)})
		if err := os.Mkdir(dir, 0o711); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, dir)
	}
	options := []string{}
	for _, o := range []string{"workdir", "upperdir"} {
		dir := filepath.Join(root, "snapshots", "1234567", strings.TrimSuffix(o, "dir"))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		options = append(options, o+"="+dir)
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"), "index=off", "xino=on")
	target := t.TempDir()
	if err := mount.All([]mount.Mount{{Type: "overlay", Source: "overlay", Options: options}},
		target); err != nil {
		t.Fatal(err)
	}
	if err := mount.UnmountAll(target, 0); err != nil {
		t.Error(err)
	}
}

// TestFormerDir: a directory that a snapshot has keeps showing the layer, whatever version has
// named it.
func TestFormerDir(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	root := testDir(t)
	dirs := make([]string, len(w.layers))
	for i, d := range w.layers {
		dirs[i] = filepath.Join(root, mountsName, d.Encoded()[:24])
	}
	dirs[1] += "-01234567"
	mount := func(t *testing.T) {
		table := w.open(root, Auto)
		var below []Below
		for i := range w.layers {
			l := w.layer(i)
			l.Dir = dirs[i]
			m, err := table.Mount(t.Context(), l, below)
			if err != nil || m.Dir != dirs[i] {
				t.Fatalf("layer %d is at %s, %v, want %s", i, m.Dir, err, dirs[i])
			}
			below = slices.Insert(below, 0, Below{Digest: w.layers[i], Dir: m.Dir})
		}
		if got := readTree(t, dirs[1]); !strings.Contains(got, "tmp dtrwxrwxrwx") {
			t.Errorf("upper layer:\n%s", got)
		}
		if wrong := table.Displaced(dirs); len(wrong) > 0 {
			t.Errorf("displaced: %v", wrong)
		}
		if err := table.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if wrong := table.Displaced(dirs); len(wrong) > 0 {
			t.Errorf("displaced by a sweep: %v", wrong)
		}
		l := w.layer(0)
		l.Dir = dirs[1]
		if m, err := table.Mount(t.Context(), l, nil); err == nil {
			t.Errorf("a layer is mounted at another's place: %+v", m)
		}
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Run("first", mount)
	t.Run("after a restart", mount)
}

// TestLayerTwice: a layer that an image has several times is seen in several places.
func TestLayerTwice(t *testing.T) {
	layers := twoLayers(t)
	w := newWorld(t, layers[0], layers[1], layers[0], layers[1])
	w.index(nil)
	dirs := w.mountAll(w.open(testDir(t), Auto))
	slices.Sort(dirs)
	if len(slices.Compact(slices.Clone(dirs))) != len(dirs) {
		t.Errorf("mounted at %v", dirs)
	}
}
