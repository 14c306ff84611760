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

// TestDocker: with the content plugin everything that Docker does with an image works on one that
// is lazy, as it does on overlayfs.
func TestDocker(t *testing.T) {
	r, ref, size := fixture.ServedDebian(t, true)
	ctx := fixture.Context(t)
	plain := fixture.Node(t, node.Options{NoMicad: true})
	other := start(t, plain, "overlayfs")
	mustf(t, other.Pull(ctx, ref), "pull by overlayfs")
	want, err := other.Save(ctx, ref)
	mustf(t, err, "save by overlayfs")

	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	e := start(t, n, "mica")
	x := &table{t: t, r: r, size: size}
	if part := x.try("docker pull", func() error { return e.Pull(ctx, ref) }); part > 0.05 {
		t.Errorf("the pull downloaded %.2f of the image", part)
	}
	var id string
	part := x.try("docker run", func() (err error) {
		var out string
		if id, out, err = e.Run(ctx, ref); err == nil {
			prints(t, "mica", out)
		}
		return err
	})
	if part > 0.5 {
		t.Errorf("until the program was ready %.2f of the image was downloaded", part)
	}
	dir := dockerfile(t, ref)
	x.try("docker build", func() error { return e.Build(ctx, dir, "run", "built:run") })
	x.try("docker build with COPY --link", func() error {
		return e.Build(ctx, dir, "link", "built:link")
	})
	_, out, err := e.Run(ctx, "built:link", "/bin/cat", "/out")
	mustf(t, err, "run what was built")
	prints(t, "docker build", out)

	var got []byte
	x.try("docker save", func() (err error) { got, err = e.Save(ctx, ref); return err })
	if got, want := entries(t, got), entries(t, want); !maps.Equal(got, want) {
		t.Errorf("the archive has %v, overlayfs's %v", slices.Sorted(maps.Keys(got)),
			slices.Sorted(maps.Keys(want)))
	}
	_, err = other.ImageLoad(ctx, bytes.NewReader(got))
	mustf(t, err, "load the archive by overlayfs")

	to := fixture.Referrers(t).Host() + "/team/app:committed"
	x.try("docker commit", func() error {
		_, err := e.ContainerCommit(ctx, id, client.ContainerCommitOptions{Reference: to})
		return err
	})
	x.try("docker push", func() error { return e.Push(ctx, to) })
	mustf(t, other.Pull(ctx, to), "pull of the commit by overlayfs")
	_, out, err = other.Run(ctx, to)
	mustf(t, err, "run the commit by overlayfs")
	prints(t, "overlayfs", out)
	copied := fixture.Referrers(t).Host() + "/team/app:copied"
	x.try("docker tag", func() error {
		_, err := e.ImageTag(ctx, client.ImageTagOptions{Source: ref, Target: copied})
		return err
	})
	x.try("docker push", func() error { return e.Push(ctx, copied) })
	x.try("docker rm, docker rmi", func() error { return e.RemoveAll(ctx) })
	fixture.Freed(t, n, 0, 8<<20)
	x.write("docker")
}

// prints checks what the image's program prints.
func prints(t *testing.T, by, out string) {
	t.Helper()
	if !strings.HasSuffix(strings.TrimSpace(out), images.Ready) {
		t.Errorf("by %s the program prints %q", by, out)
	}
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
