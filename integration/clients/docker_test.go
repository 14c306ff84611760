//go:build docker

package clients

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// start starts Docker Engine on a node.
func start(t *testing.T, n *node.Node, driver string) *Engine {
	t.Helper()
	e, err := StartEngine(fixture.Context(t), n, driver)
	mustf(t, err, "dockerd")
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func mustf(t *testing.T, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// debian pushes the Debian image with its index.
func debian(t *testing.T) (r *registry.Registry, ref string, size int64) {
	t.Helper()
	r = fixture.Registry(t)
	img := fixture.Debian(t)
	ref = fixture.Push(t, r, "debian", img)
	fixture.Index(t, r, "debian")
	size, err := images.Size(img)
	mustf(t, err, "size")
	return r, ref, size
}

// TestDocker: with the content plugin everything that Docker does with an image works on one that
// is lazy, as it does on overlayfs.
func TestDocker(t *testing.T) {
	r, ref, size := debian(t)
	ctx := fixture.Context(t)
	plain := fixture.Node(t, node.Options{NoMicad: true})
	other := start(t, plain, "overlayfs")
	mustf(t, other.Pull(ctx, ref), "pull by overlayfs")
	want, err := other.Save(ctx, ref)
	mustf(t, err, "save by overlayfs")

	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	e := start(t, n, "mica")
	r.ResetTraffic()
	mustf(t, e.Pull(ctx, ref), "pull")
	if got := r.Traffic().Down; got > size/20 {
		t.Errorf("the pull downloaded %d bytes of an image of %d", got, size)
	}
	id, out, err := e.Run(ctx, ref)
	mustf(t, err, "run")
	if !strings.HasSuffix(strings.TrimSpace(out), images.Ready) {
		t.Errorf("the program prints %q", out)
	}
	if got := r.Traffic().Down; got > size/2 {
		t.Errorf("until the program was ready %d bytes were downloaded of an image of %d", got, size)
	}

	got, err := e.Save(ctx, ref)
	mustf(t, err, "save")
	if got, want := entries(t, got), entries(t, want); !maps.Equal(got, want) {
		t.Errorf("the archive has %v, overlayfs's %v", slices.Sorted(maps.Keys(got)),
			slices.Sorted(maps.Keys(want)))
	}
	_, err = other.ImageLoad(ctx, bytes.NewReader(got))
	mustf(t, err, "load the archive by overlayfs")

	to := fixture.Referrers(t).Host() + "/team/app:committed"
	_, err = e.ContainerCommit(ctx, id, client.ContainerCommitOptions{Reference: to})
	mustf(t, err, "commit")
	mustf(t, e.Push(ctx, to), "push of the commit")
	mustf(t, other.Pull(ctx, to), "pull of the commit by overlayfs")
	_, out, err = other.Run(ctx, to)
	mustf(t, err, "run the commit by overlayfs")
	if !strings.HasSuffix(strings.TrimSpace(out), images.Ready) {
		t.Errorf("by overlayfs the commit prints %q", out)
	}
	copied := fixture.Referrers(t).Host() + "/team/app:copied"
	_, err = e.ImageTag(ctx, client.ImageTagOptions{Source: ref, Target: copied})
	mustf(t, err, "tag")
	mustf(t, e.Push(ctx, copied), "push to another registry")
}

// entries returns the contents of an archive's files by their names.
func entries(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return found
		}
		mustf(t, err, "archive")
		b, err := io.ReadAll(r)
		mustf(t, err, "archive")
		found[h.Name] = string(b)
	}
}
