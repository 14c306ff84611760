package e2e

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestExport: what docs/limits.md says about images whose blobs are to leave the node: fetched into
// containerd's content store they can be exported, pushed to another registry, and unpacked by
// overlayfs.
func TestExport(t *testing.T) {
	r := fixture.Referrers(t)
	img := fixture.ProbeImage(t)
	ref := fixture.Push(t, r, "export", img)
	fixture.Index(t, r, "export")
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Pull(t, n, mica, ref)

	out, err := n.Mica(fixture.Context(t), "fetch", "--plain-http", "--namespace", n.Namespace(),
		"--containerd-address", n.Address(), "--hosts-dir", n.HostsDir(), ref)
	mustf(t, err, "mica fetch: "+out)
	if _, err := n.Mica(fixture.Context(t), "fetch", "--namespace", n.Namespace(),
		"--containerd-address", n.Address(), ref+"-not"); err == nil ||
		!strings.Contains(err.Error(), "pull it first") {
		t.Errorf("of an image that is not there: %v", err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	fixture.Ctr(t, n, "images", "export", "--local", "--platform", "linux/"+runtime.GOARCH, archive, ref)
	there := blobsOf(t, archive)
	for _, d := range mustLayers(t, img) {
		if !there[d] {
			t.Errorf("the archive has no layer %s", d)
		}
	}

	other := fixture.Referrers(t)
	to := other.Host() + "/other/export:test"
	fixture.Ctr(t, n, "images", "push", "--plain-http", "--platform", "linux/"+runtime.GOARCH, to, ref)
	parsed, err := name.ParseReference(to, name.Insecure)
	mustf(t, err, "reference")
	pushed, err := remote.Image(parsed)
	mustf(t, err, "the pushed image")
	layers, err := pushed.Layers()
	mustf(t, err, "the pushed image")
	for _, l := range layers {
		blob, err := l.Compressed()
		mustf(t, err, "a pushed layer")
		_, err = io.Copy(io.Discard, blob) // compared with its digest
		mustf(t, err, "a pushed layer")
		mustf(t, blob.Close(), "a pushed layer")
	}

	fixture.Pull(t, n, "overlayfs", ref)
	if out := fixture.Run(t, n, "overlayfs", ref, "plain", "/probe", "echo", "here"); out != "here\n" {
		t.Errorf("by overlayfs the container prints %q", out)
	}
}

// blobsOf returns the digests of the blobs in an archive of images.
func blobsOf(t *testing.T, archive string) map[string]bool {
	t.Helper()
	f, err := os.Open(archive)
	mustf(t, err, "archive")
	defer f.Close()
	blobs := map[string]bool{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return blobs
		}
		mustf(t, err, "archive")
		if hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			blobs["sha256:"+hex] = true
		}
	}
}
