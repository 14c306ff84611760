package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// doctor runs mica doctor on a node, and returns what it says and its error.
func doctor(t *testing.T, n *node.Node, args ...string) string {
	t.Helper()
	out, err := n.Mica(fixture.Context(t), append([]string{"doctor", "--address", n.MicadAddress(),
		"--containerd-config", filepath.Join(n.Dir, "containerd.toml"), "--scratch", n.MicadRoot()},
		args...)...)
	return out + errText(err)
}

// TestDoctorImage: doctor says of an image whether this node would serve it lazily, with micad's
// credentials, and ends with an error where it would not.
func TestDoctorImage(t *testing.T) {
	r := fixture.Referrers(t)
	ref := fixture.Push(t, r, "doctor", fixture.ProbeImage(t))
	n := fixture.Node(t, node.Options{})
	check := func(when string, lazy bool, want string) {
		t.Helper()
		out := doctor(t, n, ref)
		if !strings.Contains(out, want) || strings.Contains(out, "is not lazy") == lazy {
			t.Errorf("%s, doctor does not say %q, or is wrong of its being lazy (%v):\n%s", when, want,
				lazy, out)
		}
	}
	check("without an index", false, "error    index: the registry has no index of the image")
	fixture.Index(t, r, "doctor")
	check("with one", true, "ok       index: sha256:")
	r.RequireLogin("user", "secret")
	check("without credentials", false, "error    image: ")
}
