// Package sametree compares the trees that containers see through Mica, in each
// of its modes, with what containerd's own overlayfs snapshotter unpacks: every
// path, type, mode, owner, size, time, extended attribute, link, device number
// and content, of each layer alone and of the whole under overlayfs.
package sametree

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/mica-snapshotter/mica/index/tartree/nastytar"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

func TestDebian(t *testing.T) { compare(t, fixture.Debian(t), nil) }

// All tars that containerd unpacks, one above the other: their layers are also
// more than fit into the label that lists an image's layers.
func TestNastyTars(t *testing.T) {
	var tars [][]byte
	var names []string
	for _, n := range nastytar.Accepted() {
		tars = append(tars, n.Data)
		names = append(names, n.Name)
	}
	if len(tars) < 20 {
		t.Fatalf("only %d nasty tars", len(tars))
	}
	img, err := images.FromTars([]string{"/none"}, tars...)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, img, names)
}

// compare pulls an image through overlayfs and through each mode of Mica, and
// compares. names are those of the layers, if they have any.
func compare(t *testing.T, img v1.Image, names []string) {
	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "image", img)
	fixture.Index(t, r, "image")
	probe := fixture.Probe(t)

	start := time.Now()
	plain := fixture.Node(t, node.Options{NoMicad: true})
	fixture.Pull(t, plain, "overlayfs", ref)
	view := fixture.Mount(t, plain, "overlayfs", ref)
	whole := fixture.List(t, probe, view.Dir)
	whole.UnpackedSince(start)
	layers := make([]tartreetest.Listing, len(view.Layers))
	for i, dir := range view.Layers {
		layers[i] = fixture.List(t, probe, dir)
		layers[i].UnpackedSince(start)
	}

	for _, mode := range []string{"erofs", "fuse", "local"} {
		t.Run(mode, func(t *testing.T) {
			n := fixture.Node(t, node.Options{Mode: mode})
			fixture.Pull(t, n, node.Snapshotter, ref)
			view := fixture.Mount(t, n, node.Snapshotter, ref)
			if len(view.Layers) != len(layers) {
				t.Fatalf("%d layers, want %d", len(view.Layers), len(layers))
			}
			report(t, "whole", whole, fixture.List(t, probe, view.Dir))
			for i, dir := range view.Layers {
				name := fmt.Sprintf("layer %d", i)
				if names != nil {
					name += ", " + names[i]
				}
				report(t, name, layers[i], fixture.List(t, probe, dir))
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
