package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

// A read of what the registry does not bring has its error when read_deadline is over, however
// often the kernel asks again for it.
func TestReadDeadline(t *testing.T) {
	const deadline = 6 * time.Second
	tree := known.Tree{Seed: 32, Files: 8, Size: 1 << 20}
	r := fixture.Registry(t)
	probe, err := os.ReadFile(fixture.Probe(t))
	mustf(t, err, "read probe")
	img, err := images.Known(tree, "data", 1, images.File("probe", 0o755, probe))
	mustf(t, err, "make image")
	ref := fixture.Push(t, r, "known", img)
	fixture.Index(t, r, "known")
	for _, mode := range []string{"erofs", "fuse"} {
		t.Run(mode, func(t *testing.T) {
			n := fixture.Node(t, node.Options{
				Mode: mode, DemandOnly: true, Micad: "read_deadline = \"6s\"\n",
			})
			fixture.Pull(t, n, mica, ref)
			ctx := fixture.Context(t)
			reads := faults.Reads{Tree: tree, Readers: 2, Step: time.Millisecond}
			w, err := faults.Run(ctx, n, ref, "c1", reads)
			mustf(t, err, "start readers")
			mustf(t, r.Down(), "take the registry away")
			mustf(t, w.Read(), "read")
			fixture.Eventually(t, 4*deadline, func() string {
				if w.Report().Failed == 0 {
					return "no read has failed"
				}
				return ""
			})
			// A reader whose read has failed may be about to end its next one.
			if took := w.Report().Longest; took < deadline || took > deadline+4*time.Second {
				t.Errorf("a read failed after %v", took)
			}
			mustf(t, r.Up(), "bring the registry back")
			mustf(t, w.Remove(ctx), "remove")
		})
	}
}
