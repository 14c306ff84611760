package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// A container in a user namespace sees the image's owners, and owns what it writes: lazy layers are
// mapped by idmapped mounts, in each mode.
func TestUserNamespace(t *testing.T) {
	_, ref, _ := debian(t, true)
	const script = `cat /proc/self/uid_map && stat -c '%u:%g %n' / /bin/sh /etc/passwd /etc/shadow /var/mail &&
echo mine >/srv/mine && stat -c '%u:%g %n' /srv/mine && cat /srv/mine &&
chown 33:33 /etc/passwd && stat -c '%u:%g' /etc/passwd
sleep 1 # ctr run may lose what a container writes just before its end`
	for _, mode := range []string{"erofs", "fuse", "local"} {
		t.Run(mode, func(t *testing.T) {
			n := fixture.Node(t, node.Options{Mode: mode, DemandOnly: true})
			// The container's root user is nobody out here, and has to reach its rootfs.
			mustf(t, os.Chmod(n.Dir, 0o711), "open the node's directory")
			fixture.Pull(t, n, mica, ref)
			out := fixture.Ctr(t, n, "run", "--rm", "--snapshotter", mica,
				"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels", ref, "mapped", "sh", "-c", script)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			want := []string{"0 100000 65536", "0:0 /", "0:0 /bin/sh", "0:0 /etc/passwd", "0:42 /etc/shadow", "0:8 /var/mail", "0:0 /srv/mine", "mine", "33:33"}
			if len(lines) != len(want) {
				t.Fatalf("the container prints %q, want %q", lines, want)
			}
			for i := range want {
				if got := strings.Join(strings.Fields(lines[i]), " "); got != want[i] {
					t.Errorf("line %d is %q, want %q", i, got, want[i])
				}
			}
		})
	}
}
