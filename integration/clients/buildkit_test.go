//go:build docker

package clients

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// startBuildKit starts BuildKit on a node.
func startBuildKit(t *testing.T, n *node.Node, snapshotter string) *BuildKit {
	t.Helper()
	b, err := StartBuildKit(fixture.Context(t), n, snapshotter)
	mustf(t, err, "buildkitd")
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// dockerfile returns a folder with a Dockerfile on an image: its stage run runs the image's
// program, and link copies a file.
func dockerfile(t *testing.T, ref string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"Dockerfile": "FROM " + ref + " AS run\nRUN --network=none /app/run >/out\n" +
			"FROM run AS link\nCOPY --link added /linked/\n" +
			"RUN --network=none cat /linked/added\n",
		"added": "added\n",
	} {
		mustf(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644), name)
	}
	return dir
}

// TestBuildKit: a build on an image that was never pulled downloads what its commands read, and
// makes what it makes on overlayfs.
func TestBuildKit(t *testing.T) {
	r, ref, size := fixture.ServedDebian(t, true)
	ctx := fixture.Context(t)
	dir := dockerfile(t, ref)
	export := func(b *BuildKit) map[string]string {
		t.Helper()
		dest := filepath.Join(t.TempDir(), "image.tar")
		mustf(t, b.Build(ctx, dir, "link", "--opt", "build-arg:SOURCE_DATE_EPOCH=1",
			"--output", "type=oci,rewrite-timestamp=true,dest="+dest), "export")
		archive, err := os.ReadFile(dest)
		mustf(t, err, "export")
		return entries(t, archive)
	}
	plain := fixture.Node(t, node.Options{NoMicad: true})
	want := export(startBuildKit(t, plain, "overlayfs"))

	n := fixture.Node(t, node.Options{DemandOnly: true, BuildKit: true})
	b := startBuildKit(t, n, node.Builder)
	x := &table{t: t, r: r, size: size}
	if part := x.try("FROM, RUN", func() error { return b.Build(ctx, dir, "run") }); part > 0.3 {
		t.Errorf("FROM and RUN downloaded %.2f of the image", part)
	}
	if part := x.try("COPY --link, RUN", func() error {
		return b.Build(ctx, dir, "link")
	}); part > 0.01 {
		t.Errorf("COPY --link downloaded %.2f of the image", part)
	}
	x.try("--output type=oci", func() error {
		return b.Build(ctx, dir, "link", "--output", "type=oci,dest="+filepath.Join(dir, "image"))
	})
	got := export(b)
	if !maps.Equal(got, want) {
		t.Errorf("the image has %v, overlayfs's %v", slices.Sorted(maps.Keys(got)),
			slices.Sorted(maps.Keys(want)))
	}
	n = fixture.Node(t, node.Options{DemandOnly: true, BuildKit: true, Content: true})
	e := start(t, n, node.Builder)
	if part := x.try("docker build", func() error {
		return e.Build(ctx, dir, "run", "built:run")
	}); part > 0.3 {
		t.Errorf("docker build downloaded %.2f of the image", part)
	}
	_, out, err := e.Run(ctx, "built:run", "/bin/cat", "/out")
	mustf(t, err, "run what was built")
	prints(t, "docker build", out)
	x.write("buildkit")
}
