package e2e

import (
	"syscall"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// readDirect says whether a file that is read with O_DIRECT is what it is without.
const readDirect = `f=/bin/bash
dd if=$f iflag=direct bs=4096 status=none | sha256sum >/tmp/direct
[ "$(cat /tmp/direct)" = "$(sha256sum <$f)" ] && echo same || echo other`

// Files of images open with O_DIRECT where the configuration says so, in mode fuse, and in any mode
// once they were written to.
func TestDirectIO(t *testing.T) {
	_, ref, _ := debian(t, true)
	for name, tt := range map[string]struct {
		opts  node.Options
		first string // command
		want  string
	}{
		"as installed":  {node.Options{DemandOnly: true}, "", "other\n"},
		"after a touch": {node.Options{DemandOnly: true}, "touch /bin/bash\n", "same\n"},
		"fuse":          {node.Options{DemandOnly: true, Mode: "fuse"}, "", "same\n"},
		"lazy": {node.Options{DemandOnly: true, Keep: true, Micad: "direct_io = true"}, "",
			"same\n"},
		"local": {node.Options{Mode: "local", Micad: "direct_io = true"}, "", "same\n"},
	} {
		t.Run(name, func(t *testing.T) {
			n := fixture.Node(t, tt.opts)
			fixture.Pull(t, n, mica, ref)
			got := fixture.Run(t, n, mica, ref, "direct", "sh", "-c", tt.first+readDirect)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if !tt.opts.Keep {
				return
			}
			old, err := n.SignalMicad(syscall.SIGKILL)
			mustf(t, err, "kill micad")
			mustf(t, n.AwaitMicad(fixture.Context(t), old, true), "next micad")
			if got := fixture.Run(t, n, mica, ref, "after", "sh", "-c", readDirect); got != tt.want {
				t.Errorf("after micad was killed: got %q, want %q", got, tt.want)
			}
		})
	}
}
