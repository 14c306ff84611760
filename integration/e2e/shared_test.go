package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// Two images that share layers share them on the node too: what one has
// downloaded the other reads from disk, and it is mounted once.
func TestSharedLayers(t *testing.T) {
	base := fixture.Debian(t)
	tar, err := images.Tar(images.File("srv/second", 0o644, []byte("the second image\n")))
	mustf(t, err, "tar")
	path := filepath.Join(t.TempDir(), "layer.tar.gz")
	blob, err := images.Gzip(tar)
	mustf(t, err, "gzip")
	writeFile(t, path, blob)
	layer, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
	mustf(t, err, "layer")
	second, err := mutate.AppendLayers(base, layer)
	mustf(t, err, "image")

	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "debian", base)
	ref2 := fixture.Push(t, r, "second", second)
	fixture.Index(t, r, "debian")
	fixture.Index(t, r, "second")
	n := fixture.Node(t, node.Options{})
	fixture.Pull(t, n, mica, ref)
	want := fixture.Run(t, n, mica, ref, "first")
	mounts := fixture.LayerMounts(t, n)
	r.ResetTraffic()

	fixture.Pull(t, n, mica, ref2)
	out := fixture.Run(t, n, mica, ref2, "second", "sh", "-c", "/app/run && cat /srv/second")
	if out != want+"the second image\n" {
		t.Errorf("the second image prints\n%s\nwant\n%sthe second image", out, want)
	}
	for _, q := range r.Traffic().Requests {
		for i, l := range mustLayers(t, base) {
			if q.Blob() && strings.HasSuffix(q.Path, l) {
				t.Errorf("%s of layer %d was downloaded again: %s", q.Range, i, q.Path)
			}
		}
	}
	after := fixture.LayerMounts(t, n)
	for _, m := range mounts {
		if !slices.Contains(after, m) {
			t.Errorf("%s is no longer mounted", m)
		}
	}
	if per := len(mounts) / images.Layers; len(after) != len(mounts)+per {
		t.Errorf("%d mounts for the first image, %d with the second, which has one more layer", len(mounts), len(after))
	}
}
