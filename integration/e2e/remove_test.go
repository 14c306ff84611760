package e2e

import (
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// Removing containers and image frees micad's disk and mounts, and the image
// can be pulled again after that.
func TestRemove(t *testing.T) {
	for _, tt := range []struct {
		name    string
		indexed bool
	}{{"indexed", true}, {"whole", false}} {
		t.Run(tt.name, func(t *testing.T) {
			_, ref, size := debian(t, tt.indexed)
			n := fixture.Node(t, node.Options{DemandOnly: true})
			empty := fixture.DiskUsage(t, n)
			fixture.Pull(t, n, mica, ref)
			want := fixture.Run(t, n, mica, ref, "c1")
			fixture.Ctr(t, n, "run", "-d", "--net-host", "--snapshotter", mica, ref, "c2", "sleep", "infinity")
			used := fixture.DiskUsage(t, n) - empty
			if tt.indexed && used > 3*size {
				t.Errorf("%d bytes on disk after one start of an image of %d compressed", used, size)
			}
			if len(fixture.LayerMounts(t, n)) < images.Layers {
				t.Errorf("micad has mounted %v", fixture.LayerMounts(t, n))
			}

			// a running container keeps its layers when the image goes
			fixture.Ctr(t, n, "images", "rm", "--sync", ref)
			if out := fixture.Ctr(t, n, "tasks", "exec", "--exec-id", "x", "c2", "/app/run"); out != want {
				t.Errorf("without its image the container prints\n%s\nwant\n%s", out, want)
			}
			fixture.Ctr(t, n, "tasks", "rm", "--force", "c2")
			fixture.Ctr(t, n, "containers", "rm", "c2")
			fixture.Freed(t, n, 0, empty+1<<20) // 1 MiB: databases grow and stay

			fixture.Pull(t, n, mica, ref)
			if out := fixture.Run(t, n, mica, ref, "c3"); out != want {
				t.Errorf("pulled again, the image prints\n%s\nwant\n%s", out, want)
			}
		})
	}
}
