package e2e

import (
	"fmt"
	"math"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// Two images that share layers share them on the node too: what one has
// downloaded the other reads from disk, and it is mounted once.
func TestSharedLayers(t *testing.T) {
	base := fixture.Debian(t)
	tar, err := images.Tar(images.File("srv/second", 0o644, []byte("the second image\n")))
	mustf(t, err, "tar")
	file := filepath.Join(t.TempDir(), "layer.tar.gz")
	blob, err := images.Gzip(tar)
	mustf(t, err, "gzip")
	writeFile(t, file, blob)
	layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	mustf(t, err, "layer")
	second, err := mutate.AppendLayers(base, layer)
	mustf(t, err, "image")

	r, ref, _ := debian(t, true)
	ref2 := fixture.Push(t, r, "second", second)
	fixture.Index(t, r, "second")
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Pull(t, n, mica, ref)
	want := fixture.Run(t, n, mica, ref, "first")
	mounts := fixture.LayerMounts(t, n)
	var first []registry.Request
	for _, q := range r.Traffic().Requests {
		if layer := path.Base(q.Path); q.Blob() && slices.Contains(mustLayers(t, base), layer) && whole(t, q) {
			first = append(first, q)
		}
	}
	if len(first) == 0 {
		t.Fatal("no layer was read from the registry")
	}
	r.ResetTraffic()

	fixture.Pull(t, n, mica, ref2)
	out := fixture.Run(t, n, mica, ref2, "second", "sh", "-c", "/app/run && cat /srv/second")
	if out != want+"the second image\n" {
		t.Errorf("the second image prints\n%s\nwant\n%sthe second image", out, want)
	}
	for _, again := range r.Traffic().Requests {
		for _, before := range first {
			if again.Blob() && before.Path == again.Path && overlap(t, before.Range, again.Range) {
				t.Errorf("%s of %s was downloaded again: %s before", again.Range, again.Path, before.Range)
			}
		}
	}
	after := fixture.LayerMounts(t, n)
	for _, m := range mounts {
		if !slices.Contains(after, m) {
			t.Errorf("%s is no longer mounted", m)
		}
	}
	if added := len(after) - len(mounts); added < 1 || added > 2 { // in erofs mode a layer has two
		t.Errorf("%d mount points for the first image, %d with the second, which has one more layer", len(mounts), len(after))
	}
}

// overlap tells whether two headers Range have more than one byte in common:
// deflate blocks end within a byte, so that neighbours share one. No range is
// the whole blob.
func overlap(t *testing.T, a, b string) bool {
	t.Helper()
	aFrom, aTo := bounds(t, a)
	bFrom, bTo := bounds(t, b)
	return aFrom < bTo && bFrom < aTo
}

// whole tells whether all of a request's range was sent: of one that was broken off, because its
// container ended or a read needed the connection, the rest is asked for again.
func whole(t *testing.T, q registry.Request) bool {
	t.Helper()
	from, to := bounds(t, q.Range)
	return q.Range == "" || q.Bytes == to-from+1
}

// bounds are the first and the last byte of a header Range.
func bounds(t *testing.T, header string) (from, to int64) {
	t.Helper()
	if header == "" {
		return 0, math.MaxInt64
	}
	if _, err := fmt.Sscanf(header, "bytes=%d-%d", &from, &to); err != nil {
		t.Fatalf("range %q: %v", header, err)
	}
	return from, to
}
