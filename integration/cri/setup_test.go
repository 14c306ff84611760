package cri

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestSetup pulls by CRI and by ctr on a node that mica setup has configured: lazily, and mica
// doctor finds nothing to say of its configuration.
func TestSetup(t *testing.T) {
	ctx := fixture.Context(t)
	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "debian", fixture.Debian(t))
	fixture.Index(t, r, "debian")
	size, err := images.Size(fixture.Debian(t))
	if err != nil {
		t.Fatal(err)
	}
	n, c := Start(t, r, node.Options{Setup: true, BuildKit: true, CRI: &node.CRI{}})
	lazy := func(what string) {
		t.Helper()
		if got := r.Traffic().Down; got > size/100 {
			t.Errorf("%s downloaded %d bytes of an image of %d: more than 1%%", what, got, size)
		}
		r.ResetTraffic()
	}
	r.ResetTraffic()
	if _, err := c.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	lazy("PullImage")
	fixture.Pull(t, n, node.Snapshotter, ref)
	lazy("ctr images pull")
	id, err := c.Run(ctx, StartPod(t, c, "pod"), ref, "program")
	if err != nil {
		t.Fatal(err)
	}
	if code, err := c.Wait(ctx, id); err != nil || code != 0 {
		t.Errorf("the image's program: exit code %d, %v", code, err)
	}

	config := filepath.Join(n.Dir, "containerd.toml")
	out, _ := n.Mica(ctx, "doctor", "--json", "--address", n.MicadAddress(), "--scratch", n.Dir,
		"--containerd-config", config)
	var findings []struct{ Check, Status, Detail, Fix string }
	if err := json.Unmarshal([]byte(out), &findings); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	builds := false
	for _, f := range findings {
		builds = builds || f.Check == "buildkit"
		if f.Status != "ok" && f.Check != "kernel" { // this machine's
			t.Errorf("mica doctor: %+v", f)
		}
	}
	if !builds {
		t.Errorf("mica doctor does not say that BuildKit is served: %s", out)
	}

	out, err = n.Mica(ctx, n.SetupArgs()...)
	if err != nil || !strings.HasSuffix(out, "Nothing to change.\n") {
		t.Errorf("mica setup again: %v, %s", err, out)
	}
	if _, err := n.Mica(ctx, n.SetupArgs("--yes", "--undo")...); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(config); err != nil || strings.Contains(string(b), "mica.toml") {
		t.Errorf("after --undo: %v, %s", err, b)
	}
}
