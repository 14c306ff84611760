// Package sametree compares the trees that containers see through Mica, in each
// of its modes, with what containerd's own overlayfs snapshotter unpacks: every
// path, type, mode, owner, size, time, extended attribute, link, device number
// and content, of each layer alone and of the whole under overlayfs.
package sametree

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/mica-snapshotter/mica/index/tartree/tartreetest"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest/nastytar"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// An image under test, and its tree through overlayfs.
type subject struct {
	name   string
	ref    string
	whole  tartreetest.Listing
	layers []tartreetest.Listing // lowest first
}

func TestDebian(t *testing.T) {
	compare(t, map[string]v1.Image{"debian": fixture.Debian(t)})
}

// TestNastyTars: every tar that containerd unpacks, above another layer, because for the lowest one
// containerd makes no whiteouts.
func TestNastyTars(t *testing.T) {
	base, err := images.Tar(images.Dir("base"), images.File("base/file", 0o644, []byte("base\n")))
	if err != nil {
		t.Fatal(err)
	}
	var subjects []random
	for _, n := range nastytar.Accepted() {
		subjects = append(subjects, random{name: n.Name, tars: [][]byte{base, n.Data}, apart: true})
	}
	if len(subjects) < 20 {
		t.Fatalf("only %d nasty tars", len(subjects))
	}
	accepted := compareRandom(t, fixture.Referrers(t), subjects)
	if len(accepted) != len(subjects) {
		t.Errorf("containerd unpacks %d of %d", len(accepted), len(subjects))
	}
}

// More layers than fit into the label that lists an image's layers.
func TestManyLayers(t *testing.T) {
	var tars [][]byte
	for i := range 80 {
		files := []images.Entry{
			images.File(fmt.Sprintf("etc/file%d", i), 0o644, fmt.Appendf(nil, "layer %d\n", i)),
			images.File("etc/last", 0o644, fmt.Appendf(nil, "%d\n", i)),
		}
		if i >= 2 {
			files = append(files, images.File(fmt.Sprintf("etc/.wh.file%d", i-2), 0, nil))
		}
		tar, err := images.Tar(files...)
		if err != nil {
			t.Fatal(err)
		}
		tars = append(tars, tar)
	}
	img, err := images.FromTars([]string{"/none"}, tars...)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, map[string]v1.Image{"many": img})
}

// compare pulls images, indexed, through overlayfs and through each mode of
// Mica, and compares each layer, and the whole under overlayfs.
func compare(t *testing.T, imgs map[string]v1.Image) {
	r := fixture.Registry(t)
	probe := fixture.Probe(t)
	plain := fixture.Node(t, node.Options{NoMicad: true})
	var subjects []subject
	for _, name := range slices.Sorted(maps.Keys(imgs)) {
		start := time.Now()
		s := subject{name: name, ref: fixture.Push(t, r, name, imgs[name])}
		fixture.Index(t, r, name)
		fixture.Pull(t, plain, "overlayfs", s.ref)
		view := fixture.Mount(t, plain, "overlayfs", s.ref)
		s.whole = fixture.List(t, probe, view.Dir)
		s.whole.UnpackedSince(start)
		for _, dir := range view.Layers {
			l := fixture.List(t, probe, dir)
			l.UnpackedSince(start)
			s.layers = append(s.layers, l)
		}
		subjects = append(subjects, s)
	}
	for _, mode := range []string{"erofs", "fuse", "local"} {
		t.Run(mode, func(t *testing.T) {
			n := fixture.Node(t, node.Options{Mode: mode})
			for _, s := range subjects {
				fixture.Pull(t, n, node.Snapshotter, s.ref)
				view := fixture.Mount(t, n, node.Snapshotter, s.ref)
				if len(view.Layers) != len(s.layers) {
					t.Fatalf("%s: %d layers, want %d", s.name, len(view.Layers), len(s.layers))
				}
				report(t, s.name, s.whole, fixture.List(t, probe, view.Dir))
				for i, dir := range view.Layers {
					report(t, fmt.Sprintf("%s, layer %d", s.name, i), s.layers[i], fixture.List(t, probe, dir))
				}
			}
		})
	}
}

func report(t *testing.T, what string, want, got tartreetest.Listing) {
	t.Helper()
	if len(want) == 0 {
		t.Fatalf("%s: nothing to compare with", what)
	}
	if diff := tartreetest.Diff(want, got); len(diff) > 0 {
		t.Errorf("%s: %d differences from overlayfs in %d paths:\n%s", what, len(diff), len(want), strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}
