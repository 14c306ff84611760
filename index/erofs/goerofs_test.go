package erofs_test

import (
	"bytes"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// TestGoErofs lets another reader judge: go-erofs sees the same tree.
func TestGoErofs(t *testing.T) {
	l := Nasty()
	image, err := goerofs.Open(bytes.NewReader(l.Write(t)),
		goerofs.WithExtraDevices(bytes.NewReader(l.Device.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	walk(l, func(p string, n, _ *erofs.Node) {
		name := strings.TrimPrefix(p, "/")
		if name == "" {
			name = "."
		}
		if !fs.ValidPath(name) {
			return // names that io/fs has no notion of: not UTF-8
		}
		st, err := image.(fs.ReadLinkFS).Lstat(name)
		if err != nil {
			t.Errorf("%q: %v", p, err)
			return
		}
		s := st.Sys().(*goerofs.Stat)
		sec, nsec := n.Mtime.Unix(), n.Mtime.Nanosecond()
		if n.Mtime.IsZero() {
			sec = 0
		}
		if modeOf(st.Mode().Type()) != n.Mode&unix.S_IFMT || s.UID != n.UID || s.GID != n.GID ||
			s.Mtime != uint64(sec) || s.MtimeNs != uint32(nsec) || uint64(s.Rdev) != n.Rdev {
			t.Errorf("%q: %v %+v, want %+v", p, st.Mode(), s, n)
		}
		if !acl(n) && !maps.Equal(s.Xattrs, n.Xattrs) && len(s.Xattrs)+len(n.Xattrs) > 0 {
			t.Errorf("%q: attributes %.100q", p, slices.Collect(maps.Keys(s.Xattrs)))
		}
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			got, err := fs.ReadFile(image, name)
			if err != nil || !bytes.Equal(got,
				content(t, bytes.NewReader(l.Device.Bytes()), n, 0, n.Size)) {
				t.Errorf("%q: wrong content, %v", p, err)
			}
		case unix.S_IFLNK:
			if got, err := image.(fs.ReadLinkFS).ReadLink(name); err != nil || got != n.Target {
				t.Errorf("%q: target %q, %v", p, got, err)
			}
		}
	})
}

// acl says whether n has an ACL: go-erofs gives these names a dot too many.
func acl(n *erofs.Node) bool {
	_, ok := n.Xattrs["system.posix_acl_access"]
	return ok
}
