package e2e

import (
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestFromOverlayfs: an image that overlayfs has is lazy with mica once it is pulled by it, which
// downloads nothing. A container before that has containerd unpack the blobs that it has, for good.
func TestFromOverlayfs(t *testing.T) {
	r := fixture.Referrers(t)
	ref := fixture.Push(t, r, "switched", fixture.ProbeImage(t))
	fixture.Index(t, r, "switched")
	n := fixture.Node(t, node.Options{})
	served := func(when string, want bool) {
		t.Helper()
		if out := fixture.Run(t, n, mica, ref, "c", "/probe", "echo", "here"); out != "here\n" {
			t.Errorf("%s: the container prints %q", when, out)
		}
		if got := len(fixture.LayerMounts(t, n)) > 0; got != want {
			t.Errorf("%s: micad serves the image: %v, want %v", when, got, want)
		}
	}
	fixture.Pull(t, n, "overlayfs", ref)
	served("after overlayfs's pull", false)
	fixture.Pull(t, n, mica, ref)
	served("pulled after that", false)
	fixture.Ctr(t, n, "images", "rm", "--sync", ref)

	fixture.Pull(t, n, "overlayfs", ref)
	fixture.Pull(t, n, mica, ref)
	served("pulled before any container", true)
}
