//go:build docker

package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// services are two of one image, and one that is built on it. Docker Engine has no network here.
const services = `name: %[2]s
services:
  program: {image: %[1]q, network_mode: none}
  shell: {image: %[1]q, network_mode: none, command: [/bin/cat, /etc/os-release]}
  built:
    build: {context: ., target: run}
    network_mode: none
    command: [/bin/cat, /out]
    profiles: [built]
`

// TestCompose: docker compose does with an image that was never pulled what it does on overlayfs,
// lazily.
func TestCompose(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	r, ref, size := fixture.ServedDebian(t, true)
	ctx := fixture.Context(t)
	dir := dockerfile(t, ref)
	x := &table{t: t, r: r, size: size}
	printed := func(driver string, e *Engine) (lines []string, up, build float64) {
		t.Helper()
		file := fmt.Appendf(nil, services, ref, driver)
		mustf(t, os.WriteFile(filepath.Join(dir, "compose.yaml"), file, 0o600), "compose.yaml")
		compose := func(args ...string) func() error {
			return func() error {
				out, err := e.Compose(ctx, dir, args...)
				lines = append(lines, slices.Collect(strings.Lines(out))...)
				return err
			}
		}
		up = x.try("docker compose up", compose("up", "--no-color", "--no-log-prefix"))
		build = x.try("docker compose build", compose("--progress", "quiet", "build", "built"))
		x.try("docker compose run", compose("run", "-T", "--rm", "built"))
		x.try("docker compose down", compose("--profile", "built", "down", "--rmi", "all"))
		containers, err := e.ContainerList(ctx, client.ContainerListOptions{All: true})
		mustf(t, err, "containers")
		images, err := e.ImageList(ctx, client.ImageListOptions{})
		mustf(t, err, "images")
		if len(containers.Items)+len(images.Items) > 0 {
			t.Errorf("%s: left are %v, %v", driver, containers.Items, images.Items)
		}
		slices.Sort(lines) // those of two services mix
		return lines, up, build
	}
	want, _, _ := printed("overlayfs", start(t, fixture.Node(t, node.Options{NoMicad: true}),
		"overlayfs"))
	x.rows.Reset()
	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true})
	got, up, build := printed("mica", start(t, n, "mica"))
	if !slices.Equal(got, want) || len(want) < 5 {
		t.Errorf("prints\n%q\nwant what it prints on overlayfs:\n%q", got, want)
	}
	if up > 0.5 || build > 0.01 {
		t.Errorf("up downloaded %.2f of the image, and build %.2f", up, build)
	}
	x.write("compose")
}
