package e2e

import (
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// An image that was never indexed is downloaded once, whole, by micad, and runs.
func TestUnindexed(t *testing.T) {
	r, ref, size := debian(t, false)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Pull(t, n, mica, ref)
	if got := r.Traffic().BlobBytes(); got < size || got > size+size/50 {
		t.Errorf("%d bytes of blobs downloaded, want the image once: %d", got, size)
	}
	r.ResetTraffic()
	want := plainly(t)
	if out := fixture.Run(t, n, mica, ref, "program"); out != want {
		t.Errorf("the program prints\n%s\nthrough overlayfs\n%s", out, want)
	}
	if q := r.Traffic().Requests; len(q) > 0 {
		t.Errorf("requests after the layers were downloaded whole: %+v", q)
	}
}

// micad without credentials for a registry that containerd has them for:
// containerd pulls by itself, the container runs, and mica ps says why.
func TestNoCredentials(t *testing.T) {
	for _, indexed := range []bool{true, false} {
		t.Run(map[bool]string{true: "indexed", false: "whole"}[indexed], func(t *testing.T) {
			r := fixture.Registry(t)
			ref := fixture.Push(t, r, "private", fixture.ProbeImage(t, "echo", "here"))
			if indexed {
				fixture.Index(t, r, "private")
			}
			r.RequireLogin("user", "secret")
			n := fixture.Node(t, node.Options{DemandOnly: true})
			fixture.Ctr(t, n, "images", "pull", "--plain-http", "--user", "user:secret", "--snapshotter", mica, ref)
			if out := fixture.Run(t, n, mica, ref, "program"); out != "here\n" {
				t.Errorf("the program prints %q", out)
			}
			ps, err := n.Mica(fixture.Context(t), "ps", "--address", n.MicadAddress())
			mustf(t, err, "mica ps")
			if !strings.Contains(ps, "401") && !strings.Contains(strings.ToLower(ps), "credential") && !strings.Contains(strings.ToLower(ps), "unauthorized") {
				t.Errorf("mica ps does not say that credentials are missing:\n%s", ps)
			}
		})
	}
}

// With credentials in docker's config.json micad serves the same image lazily.
func TestCredentials(t *testing.T) {
	r, ref, size := debian(t, true)
	r.RequireLogin("user", "secret")
	config := dockerConfig(t, r.Host(), "user", "secret")
	n := fixture.Node(t, node.Options{DemandOnly: true, MicadEnv: []string{"DOCKER_CONFIG=" + config}})
	r.ResetTraffic()
	fixture.Ctr(t, n, "images", "pull", "--plain-http", "--user", "user:secret", "--snapshotter", mica, ref)
	lazy(t, r.Traffic(), size)
	if out := fixture.Run(t, n, mica, ref, "program"); !strings.HasSuffix(out, images.Ready+"\n") {
		t.Errorf("the program prints\n%s", out)
	}
}
