package node_test

import (
	"os"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// A node without Mica runs an image and leaves nothing behind.
func TestNode(t *testing.T) {
	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "probe", fixture.ProbeImage(t, "echo", "hello"))
	n, err := node.Start(fixture.Context(t), "", node.Options{NoMicad: true})
	if err != nil {
		t.Fatal(err)
	}
	fixture.Pull(t, n, "overlayfs", ref)
	if out := fixture.Run(t, n, "overlayfs", ref, "c1"); out != "hello\n" {
		t.Errorf("output %q, want hello", out)
	}
	fixture.Ctr(t, n, "run", "-d", "--net-host", "--snapshotter", "overlayfs", ref, "c2", "/probe", "pause")
	if err := n.RestartContainerd(fixture.Context(t)); err != nil {
		t.Error(err)
	}
	if out := fixture.Ctr(t, n, "tasks", "list"); !strings.Contains(out, "RUNNING") {
		t.Errorf("tasks after a restart of containerd:\n%s", out)
	}
	if err := n.Close(); err != nil {
		t.Errorf("close with a running container: %v", err)
	}
	if _, err := os.Stat(n.Dir); err == nil {
		t.Errorf("%s is still there", n.Dir)
	}
	if points, err := node.Mounts(n.Dir); err != nil || len(points) > 0 {
		t.Errorf("mounted: %v %v", points, err)
	}
}
