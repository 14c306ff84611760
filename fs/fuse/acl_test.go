package fuse_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
)

// An access control list says who may read a file, not the mode's bits for its group, which stand
// for the list's mask.
func TestACL(t *testing.T) {
	const all = "\xff\xff\xff\xff" // no ID
	b := layertest.NewBuilder()
	b.File("acl", 0o640, []byte("x")).Xattrs = map[string]string{"system.posix_acl_access": "" +
		"\x02\x00\x00\x00" + "\x01\x00\x06\x00" + all + "\x02\x00\x04\x00\xe9\x03\x00\x00" +
		"\x04\x00\x00\x00" + all + "\x10\x00\x04\x00" + all + "\x20\x00\x00\x00" + all}
	l := b.Make(t)
	for _, top := range []string{"fuse", "erofs"} {
		t.Run(top, func(t *testing.T) {
			dir, err := os.Open(mountTop(t, top, l, &memDevice{data: l.Data}, erofs.Options{}))
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			for name, tt := range map[string]struct {
				uid, gid uint32
				may      bool
			}{
				"named user":      {1001, 1001, true},
				"owning group":    {1002, 0, false},
				"named, of group": {1001, 0, true},
				"other":           {1002, 1002, false},
			} {
				cmd := exec.CommandContext(t.Context(), "/bin/cat", "/proc/self/fd/3/acl")
				cmd.ExtraFiles = []*os.File{dir} // others cannot reach it by its path
				cmd.SysProcAttr = &syscall.SysProcAttr{
					Credential: &syscall.Credential{Uid: tt.uid, Gid: tt.gid}}
				out, err := cmd.CombinedOutput()
				denied := strings.Contains(string(out), "Permission denied")
				if tt.may && (err != nil || string(out) != "x") || !tt.may && !denied {
					t.Errorf("%s: %v, %q; may read: %v", name, err, out, tt.may)
				}
			}
		})
	}
}
