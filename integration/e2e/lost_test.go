package e2e

import (
	"os"
	"path/filepath"
	"regexp"
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

// TestRootLost: micad's root is gone, and containerd's metadata are not. The commands that doctor
// prints heal that.
func TestRootLost(t *testing.T) {
	ref := small(t, "lost")
	n := fixture.Node(t, node.Options{})
	fixture.Pull(t, n, mica, ref)
	doctor := func() string {
		out, err := n.Mica(fixture.Context(t), "doctor", "--address", n.MicadAddress(),
			"--containerd-config", filepath.Join(n.Dir, "containerd.toml"), "--scratch", n.MicadRoot())
		return out + errText(err)
	}
	if out := doctor(); !strings.Contains(out, "ok       snapshots: ") {
		t.Errorf("doctor says, where all is well:\n%s", out)
	}
	mustf(t, n.StopMicad(), "stop micad")
	mustf(t, os.RemoveAll(n.MicadRoot()), "lose the root")
	mustf(t, n.StartMicad(fixture.Context(t)), "start micad")
	if err := n.Pull(fixture.Context(t), mica, ref); err == nil {
		t.Error("a pull works: doctor need not say more")
	}
	out := doctor()
	if !strings.Contains(out, "error    snapshots: in namespace "+n.Namespace()) {
		t.Errorf("doctor says:\n%s", out)
	}
	for _, command := range printedCommand.FindAllStringSubmatch(out, -1) {
		args := strings.Fields(command[1])
		if args[1] == "pull" {
			args = append(args[:2:2], append([]string{"--plain-http"}, args[2:]...)...)
		}
		fixture.Ctr(t, n, args...)
	}
	if out := doctor(); !strings.Contains(out, "ok       snapshots: ") {
		t.Errorf("doctor says after that:\n%s", out)
	}
	if out := fixture.Run(t, n, mica, ref, "c1", "/probe", "echo", "here"); out != "here\n" {
		t.Errorf("the container prints %q", out)
	}
}

// printedCommand is one that doctor prints for the namespace of a node.
var printedCommand = regexp.MustCompile(`(?m)^ +ctr -n \S+ (.*)$`)

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
