package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// nosy is a container that looks for the daemon: mounts, devices, sockets, the way up out of the
// root, calls that are no reads. It is root and has the host's network.
const nosy = `
echo "mounts: $(awk '$5 != "/" {print $0}' /proc/self/mountinfo | grep -ciE 'fuse|erofs|micad')"
echo "root: $(awk '$5 == "/" {for (i=7; i<=NF; i++) if ($i == "-") print $(i+1)}' /proc/self/mountinfo)"
echo "sockets: $(grep -c '@.*mica' /proc/net/unix)"
echo "up: $(cd / && cd ../../../.. && pwd) $(ls -d /../../var/lib/micad 2>/dev/null)"
lower=$(awk '$5 == "/"' /proc/self/mountinfo | grep -o 'lowerdir=[^,]*' | cut -d= -f2 | tr : '\n' | head -1)
echo "lower: $(ls -d "$lower" 2>/dev/null)"
echo "fuse: $(ls -d /dev/fuse /sys/fs/fuse/connections/* 2>/dev/null | wc -l)"
lsattr /etc/passwd >/dev/null 2>&1; cat /etc/passwd >/dev/null && echo reads
`

// TestNothingOfMica: a container reaches the daemon by reads of its files alone, and users of the
// node not even so.
func TestNothingOfMica(t *testing.T) {
	_, ref, _ := debian(t, true)
	for _, mode := range []string{"erofs", "fuse"} {
		t.Run(mode, func(t *testing.T) {
			n := fixture.Node(t, node.Options{Mode: mode, DemandOnly: true})
			fixture.Pull(t, n, mica, ref)
			got := fixture.Run(t, n, mica, ref, "nosy", "sh", "-c", nosy)
			const want = "mounts: 0\nroot: overlay\nsockets: 0\nup: / \nlower: \nfuse: 0\nreads"
			if !strings.HasPrefix(got, want) {
				t.Errorf("the container finds\n%s", got)
			}
			// A user of the node who knows a layer's digest.
			mounts, err := filepath.Glob(filepath.Join(n.Dir, "*", "m", "*"))
			if err != nil || len(mounts) == 0 {
				t.Fatalf("no layers are mounted: %v", err)
			}
			mustf(t, os.Chmod(n.Dir, 0o711), "open the node's directory")
			for _, m := range mounts {
				cmd := exec.CommandContext(t.Context(), "ls", m)
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
				if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
					t.Errorf("nobody lists %s: %s", m, out)
				}
			}
		})
	}
}
