//go:build docker

package clients

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/mica-snapshotter/mica/integration/faults"
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

// update writes what was tried into docs/clients.md.
var update = flag.Bool("update", false, "write the table into docs/clients.md")

// table collects what a client does with a lazy image, and what it downloads for it.
type table struct {
	t    *testing.T
	r    *registry.Registry
	size int64 // of the image, bytes
	rows strings.Builder
}

// try does one thing after another, and stops the test where it fails. It returns how much of the
// image was downloaded for it, 1 being all.
func (x *table) try(what string, do func() error) float64 {
	x.t.Helper()
	x.r.ResetTraffic()
	start := time.Now()
	mustf(x.t, do(), what)
	part := float64(x.r.Traffic().Down) / float64(x.size)
	fmt.Fprintf(&x.rows, "| `%s` | %.1f s | %.1f %% |\n", what, time.Since(start).Seconds(), 100*part)
	return part
}

// write writes the table into docs/clients.md, where that is wanted.
func (x *table) write(name string) {
	x.t.Helper()
	text := fmt.Sprintf("| command | took | downloaded of %.0f MB |\n|---|---|---|\n%s",
		float64(x.size)/1e6, x.rows.String())
	x.t.Log("\n" + text)
	if *update && !x.t.Failed() {
		root, err := node.Checkout()
		mustf(x.t, err, "checkout")
		mustf(x.t, faults.Update(filepath.Join(root, "docs/clients.md"), name, text), "docs")
	}
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
