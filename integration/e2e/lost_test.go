package e2e

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// small pushes an indexed image of one program, and returns its reference.
func small(t *testing.T, name string) string {
	t.Helper()
	r := fixture.Referrers(t)
	ref := fixture.Push(t, r, name, fixture.ProbeImage(t))
	fixture.Index(t, r, name)
	return ref
}

// TestRootLost: micad's root is gone, and containerd's metadata are not. To remove the image is not
// enough where a container has it. What doctor names heals that, for the plugin for BuildKit too.
func TestRootLost(t *testing.T) {
	for _, plugin := range []string{mica, node.Builder} {
		t.Run(plugin, func(t *testing.T) { rootLost(t, plugin) })
	}
}

func rootLost(t *testing.T, plugin string) {
	ref := small(t, "lost")
	n := fixture.Node(t, node.Options{BuildKit: plugin == node.Builder, Containerd: fmt.Sprintf(
		"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/%s'\n"+
			"snapshotter = %q", runtime.GOARCH, plugin)})
	fixture.Pull(t, n, plugin, ref)
	c, err := n.StartContainer(fixture.Context(t), plugin, ref, "c0", io.Discard, io.Discard,
		"/probe", "pause")
	mustf(t, err, "start a container")
	if out := doctor(t, n); !strings.Contains(out, "ok       snapshots: ") {
		t.Errorf("doctor says, where all is well:\n%s", out)
	}
	lose := func(to string) {
		t.Helper()
		mustf(t, n.StopMicad(), "stop micad")
		mustf(t, os.Rename(n.MicadRoot(), n.MicadRoot()+to), "lose the root")
		mustf(t, n.StartMicad(fixture.Context(t)), "start micad")
	}
	lose(".1")
	if err := n.Pull(fixture.Context(t), plugin, ref); err == nil {
		t.Error("a pull works: doctor need not say more")
	}
	out := doctor(t, n)
	pull := "mica pull -n " + n.Namespace() + " " + ref
	next := pull
	if plugin != mica {
		next = "buildctl prune --all"
	}
	for _, want := range []string{"error    snapshots: in namespace " + n.Namespace() +
		" containerd takes 1 images for unpacked, and has 2 snapshots", "mica doctor --forget", next} {
		if !strings.Contains(out, want) {
			t.Errorf("doctor does not say %q:\n%s", want, out)
		}
	}
	fixture.Ctr(t, n, "images", "rm", "--sync", ref)
	if err := n.Pull(fixture.Context(t), plugin, ref); err == nil {
		t.Error("a pull works as soon as the image is removed: --forget need not be")
	}
	if out := doctor(t, n); !strings.Contains(out, "takes 0 images for unpacked, and has 1 snaps") {
		t.Errorf("doctor says when the image is removed:\n%s", out)
	}
	if out := doctor(t, n, "--forget"); !strings.Contains(out, "0 images, 1 snapshots") {
		t.Errorf("doctor --forget says:\n%s", out)
	}
	if out := doctor(t, n); !strings.Contains(out, "ok       snapshots: ") {
		t.Errorf("doctor says after that:\n%s", out)
	}
	again := func(id string) {
		t.Helper()
		if plugin == mica {
			_, err = n.Mica(fixture.Context(t), append(strings.Fields(pull)[1:], "--plain-http",
				"--containerd-address", n.Address(), "--address", n.MicadAddress())...)
		} else {
			err = n.Pull(fixture.Context(t), plugin, ref)
		}
		mustf(t, err, "pull")
		if out := fixture.Run(t, n, plugin, ref, id, "/probe", "echo", "here"); out != "here\n" {
			t.Errorf("the container prints %q", out)
		}
	}
	again("c1")
	mustf(t, c.Remove(fixture.Context(t)), "remove the container without files")
	lose(".2")
	if out := doctor(t, n, "--forget"); !strings.Contains(out, "1 images, 1 snapshots") {
		t.Errorf("doctor --forget says of the image alone:\n%s", out)
	}
	again("c2")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
