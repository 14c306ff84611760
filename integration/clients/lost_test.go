//go:build docker

package clients

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestLost: micad's root is lost under Docker Engine on BuildKit's plugin. What mica doctor says to
// do heals it: pulls and builds work again.
func TestLost(t *testing.T) {
	_, ref, _ := fixture.ServedDebian(t, true)
	ctx := fixture.Context(t)
	dir := dockerfile(t, ref)
	n := fixture.Node(t, node.Options{DemandOnly: true, Content: true, BuildKit: true})
	e := start(t, n, node.Builder)
	use := func() error {
		if err := e.Pull(ctx, ref); err != nil {
			return err
		}
		if err := e.Build(ctx, dir, "run", "built:lost"); err != nil {
			return err
		}
		_, out, err := e.Run(ctx, "built:lost", "/bin/cat", "/out")
		prints(t, "what was built", out)
		return err
	}
	mustf(t, use(), "pull, build and run")
	mustf(t, n.StopMicad(), "stop micad")
	mustf(t, os.Rename(n.MicadRoot(), n.MicadRoot()+".1"), "lose the root")
	mustf(t, n.StartMicad(ctx), "start micad")
	if err := e.Pull(ctx, ref); err == nil {
		t.Error("a pull works: doctor need not say more")
	}
	doctor := func(want string, more ...string) {
		t.Helper()
		out, _ := n.Mica(ctx, append([]string{"doctor", "--address", n.MicadAddress(), "--scratch",
			n.MicadRoot(), "--containerd-config", filepath.Join(n.Dir, "containerd.toml")}, more...)...)
		if !strings.Contains(out, want) {
			t.Errorf("doctor %v says\n%s\nwant %q", more, out, want)
		}
	}
	doctor("docker builder prune --all")
	doctor("ok       forgotten: ", "--forget")
	doctor("ok       snapshots: ")
	_, err := e.BuildCachePrune(ctx, client.BuildCachePruneOptions{All: true})
	mustf(t, err, "docker builder prune --all")
	mustf(t, use(), "pull, build and run again")
}
