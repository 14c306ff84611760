package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// formatsTars are the tars of three layers of some megabytes.
func formatsTars(t *testing.T) [][]byte {
	t.Helper()
	noise := bytes.Repeat([]byte("all kinds of compression "), 1<<18)
	for i := range noise { // which does not compress well
		noise[i] ^= byte(i * i >> 9)
	}
	var tars [][]byte
	for _, e := range [][]images.Entry{
		{images.Dir("a"), images.File("a/base", 0o644, noise)},
		{images.Dir("b"), images.File("b/middle", 0o644, noise[1:])},
		{images.Dir("c"), images.File("c/upper", 0o644, noise[2:])},
	} {
		tar, err := images.Tar(e...)
		mustf(t, err, "tar")
		tars = append(tars, tar)
	}
	return tars
}

// layerModes returns how micad serves the layers, by digest.
func layerModes(t *testing.T, n *node.Node) map[string]string {
	t.Helper()
	out, err := n.Mica(fixture.Context(t), "ps", "--json", "--address", n.MicadAddress())
	mustf(t, err, "mica ps")
	var status struct {
		Layers []struct{ Layer, Mode string }
	}
	mustf(t, json.Unmarshal([]byte(out), &status), "mica ps --json")
	modes := map[string]string{}
	for _, l := range status.Layers {
		modes[l.Layer] = l.Mode
	}
	return modes
}

// Layers in zstd, of one frame and of many, are downloaded whole and served by the kernel; those in
// gzip under, between and above them stay lazy.
func TestZstdLayer(t *testing.T) {
	r := fixture.Registry(t)
	tree := known.Tree{Seed: 9, Files: 50, Size: 300 << 10}
	img, err := images.Known(tree, "data", 5)
	mustf(t, err, "image")
	frames := map[int]int64{1: 1 << 40, 3: 256 << 10} // bytes in a frame, by layer
	for layer, frame := range frames {
		img, err = images.WithBlob(img, layer, images.ZstdLayer, images.Zstd(frame))
		mustf(t, err, "image")
	}
	ref := fixture.Push(t, r, "zstd", img)
	fixture.Index(t, r, "zstd")
	r.ResetTraffic()
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Pull(t, n, mica, ref)
	traffic, modes := r.Traffic().Requests, layerModes(t, n)
	for i, l := range mustLayers(t, img) {
		requests := 0
		for _, q := range traffic {
			if strings.HasSuffix(q.Path, l) {
				requests++
			}
		}
		_, whole := frames[i]
		if requests > 0 != whole || (modes[l] == "local") != whole {
			t.Errorf("layer %d: mode %s after %d requests", i, modes[l], requests)
		}
	}
	passes(t, tree, fixture.Mount(t, n, mica, ref))
	psSays(t, n, ref, "micad downloaded 2 of its layers", "zstd cannot be read from the middle")
}

// psSays checks the line in which mica ps says that an image was not lazy.
func psSays(t *testing.T, n *node.Node, ref string, words ...string) {
	t.Helper()
	ps, err := n.Mica(fixture.Context(t), "ps", "--address", n.MicadAddress())
	mustf(t, err, "mica ps")
	_, list, _ := strings.Cut(ps, "\nNot lazy:\n")
	for line := range strings.Lines(list) {
		if !strings.HasPrefix(line, "  "+ref+", ") {
			continue
		}
		for _, w := range words {
			if !strings.Contains(line, w) {
				t.Errorf("mica ps does not say %q:\n%s", w, line)
			}
		}
		return
	}
	t.Errorf("mica ps does not say that %s was not lazy:\n%s", ref, ps)
}

// A layer that was built wrong is downloaded once by micad, which says so; containerd refuses it
// too.
func TestMalformedLayer(t *testing.T) {
	r := fixture.Registry(t)
	plain, err := images.FromTars([]string{"/none"}, formatsTars(t)...)
	mustf(t, err, "image")
	img, err := images.WithBlob(plain, 1, types.OCILayer, func(w io.Writer, tar io.Reader) error {
		b, err := io.ReadAll(tar)
		if err == nil {
			b, err = images.Gzip(b)
		}
		if err == nil {
			_, err = w.Write(append(b, "twenty-one bytes more"...))
		}
		return err
	})
	mustf(t, err, "image")
	ref := fixture.Push(t, r, "malformed", img)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	var requests atomic.Int64
	malformed := mustLayers(t, img)[1]
	r.SetRule(func(q *http.Request, _ int64) registry.Fault {
		if strings.HasPrefix(q.UserAgent(), "micad/") && strings.HasSuffix(q.URL.Path, malformed) {
			requests.Add(1)
		}
		return registry.Fault{}
	})
	if err := n.Pull(fixture.Context(t), mica, ref); err == nil {
		t.Error("containerd takes the image")
	} else {
		t.Log("containerd:", err)
	}
	if got := requests.Load(); got != 1 {
		t.Errorf("micad asked %d times for the layer", got)
	}
	psSays(t, n, ref, "containerd pulled layer", "built wrong")
}
