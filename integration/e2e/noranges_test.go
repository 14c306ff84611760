package e2e

import (
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// ignoresRanges answers the first n requests for each blob with the whole of it.
func ignoresRanges(n int) registry.Rule {
	var mu sync.Mutex
	asked := map[string]int{}
	return func(r *http.Request, _ int64) registry.Fault {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return registry.Fault{}
		}
		mu.Lock()
		defer mu.Unlock()
		asked[r.URL.Path]++
		return registry.Fault{Whole: asked[r.URL.Path] <= n}
	}
}

// Readers in a container read all of an image at random, of a registry that ignores ranges: what it
// sends is at most twice what the image has, and nothing is wrong.
func TestRangesIgnored(t *testing.T) {
	tree := known.Tree{Seed: 31, Files: 64, Size: 1 << 20}
	r := fixture.Registry(t)
	probe, err := os.ReadFile(fixture.Probe(t))
	mustf(t, err, "read probe")
	img, err := images.Known(tree, "data", 2, images.File("probe", 0o755, probe))
	mustf(t, err, "make image")
	size, err := images.Size(img)
	mustf(t, err, "size")
	fixture.Push(t, r, "known", img)
	fixture.Index(t, r, "known")
	for name, c := range map[string]struct {
		ignored int // requests of each blob
		options node.Options
	}{
		"always":          {1 << 30, node.Options{}},
		"without a fill":  {1 << 30, node.Options{DemandOnly: true}},
		"at first":        {8, node.Options{}},
		"in mode fuse":    {1 << 30, node.Options{Mode: "fuse"}},
		"the first of it": {1, node.Options{DemandOnly: true}},
	} {
		t.Run(name, func(t *testing.T) {
			front, err := r.Front()
			mustf(t, err, "front")
			defer front.Close()
			front.SetProfile(shaper.Profile{RTT: 2 * time.Millisecond, Rate: 40e6})
			front.SetRule(ignoresRanges(c.ignored))
			n := fixture.Node(t, c.options)
			ref := front.Host() + "/known:test"
			fixture.Pull(t, n, mica, ref)
			ctx := fixture.Context(t)
			reads := faults.Reads{Tree: tree, Readers: 4, Step: time.Millisecond}
			w, err := faults.Run(ctx, n, ref, "c1", reads)
			mustf(t, err, "start readers")
			mustf(t, w.Read(), "read")
			report, err := w.Finish(ctx)
			mustf(t, err, "read everything")
			if report.Failed > 0 || report.Wrong > 0 {
				t.Errorf("%d reads failed, %d were wrong: %v",
					report.Failed, report.Wrong, report.Trouble)
			}
			sent, requests := front.Traffic().BlobBytes(), len(front.Traffic().Requests)
			t.Logf("%d bytes of %d in %d requests; the longest read took %v",
				sent, size, requests, report.Longest)
			if sent > 2*size {
				t.Errorf("%d bytes were sent of an image of %d", sent, size)
			}
			mustf(t, w.Remove(ctx), "remove")
		})
	}
}
