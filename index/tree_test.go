package index

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTree compares what Tree reads with what Write was given.
func TestTree(t *testing.T) {
	for name, l := range map[string]*layer{
		"nasty": nasty(),
		"empty": layerOf(),
		"large root": layerOf(dir("/", xattr("user.root", strings.Repeat("r", 400))),
			entries(3000, func(i int) entry {
				return file(strings.Repeat("f", i%200)+string(rune('0'+i%10))+string(rune('a'+i/200)), "")
			})),
	} {
		t.Run(name, func(t *testing.T) {
			x := l.open(t)
			if err := Check(context.Background(), x); err != nil {
				t.Fatal(err)
			}
			compareTree(t, l, x.Tree())
		})
	}
}

func compareTree(t *testing.T, l *layer, tree *Tree) {
	links, nids := l.links(), map[*Node]uint64{}
	device := bytes.NewReader(l.device.Bytes())
	l.walk(func(p string, n, parent *Node) {
		nid := tree.Root()
		if n != parent {
			var err error
			if nid, err = tree.Lookup(nids[parent], path.Base(p)); err != nil {
				t.Fatal(err)
			}
		}
		if old, ok := nids[n]; ok && old != nid {
			t.Errorf("%s: nid %d, by another name %d", p, nid, old)
		}
		nids[n] = nid
		ino, err := tree.Inode(nid)
		if err != nil {
			t.Fatal(err)
		}
		mtime := n.Mtime
		if mtime.IsZero() {
			mtime = time.Unix(0, 0)
		}
		if ino.Mode != n.Mode || ino.UID != n.UID || ino.GID != n.GID || !ino.Mtime.Equal(mtime) || ino.Rdev != n.Rdev || int(ino.Nlink) != links[n] {
			t.Errorf("%s: %+v, want %+v with %d links", p, ino, n, links[n])
		}
		compareXattrs(t, p, n, tree, nid)
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			compareContent(t, l, p, n, tree, ino, device)
		case unix.S_IFLNK:
			if got, err := tree.Readlink(nid); err != nil || got != n.Target || ino.Size != int64(len(n.Target)) {
				t.Errorf("%s: target %q, %v, size %d", p, got, err, ino.Size)
			}
		case unix.S_IFDIR:
			compareDir(t, p, n, tree, nid)
		}
	})
}

func compareXattrs(t *testing.T, p string, n *Node, tree *Tree, nid uint64) {
	t.Helper()
	names, err := tree.ListXattrs(nid)
	if err != nil || !slices.Equal(slices.Sorted(slices.Values(names)), slices.Sorted(maps.Keys(n.Xattrs))) {
		t.Errorf("%s: attributes %q, %v", p, names, err)
	}
	for name, want := range n.Xattrs {
		if got, err := tree.Xattr(nid, name); err != nil || string(got) != want {
			t.Errorf("%s: attribute %s: %d bytes, %v, want %d", p, name, len(got), err, len(want))
		}
	}
	if _, err := tree.Xattr(nid, "user.none"); !errors.Is(err, ErrNoXattr) {
		t.Errorf("%s: attribute that is not there: %v", p, err)
	}
}

func compareContent(t *testing.T, l *layer, p string, n *Node, tree *Tree, ino Inode, device *bytes.Reader) {
	t.Helper()
	if ino.Size != n.Size {
		t.Errorf("%s: size %d, want %d", p, ino.Size, n.Size)
	}
	for _, r := range []Range{{0, n.Size}, {0, 1}, {n.Size / 2, n.Size}, {n.Size - 1, 10}, {511, 2}, {1000, 5000}} {
		if r.Off < 0 || r.Off > n.Size {
			continue
		}
		var got []byte
		err := tree.Extents(ino, r.Off, r.Size, func(e Extent) error {
			if e.File != r.Off+int64(len(got)) || e.Size == 0 {
				t.Errorf("%s: piece %d+%d at offset %d", p, e.File, e.Size, r.Off+int64(len(got)))
			}
			b := make([]byte, e.Size)
			switch {
			case e.Data != nil:
				copy(b, e.Data)
			case e.Device != Hole:
				if _, err := device.ReadAt(b, e.Device); err != nil {
					return err
				}
			}
			got = append(got, b...)
			return nil
		})
		if err != nil || !bytes.Equal(got, l.content(t, device, n, r.Off, r.Size)) {
			t.Errorf("%s: wrong content at %d+%d: %v", p, r.Off, r.Size, err)
		}
	}
}

func compareDir(t *testing.T, p string, n *Node, tree *Tree, nid uint64) {
	t.Helper()
	want := slices.Sorted(maps.Keys(n.Children))
	want = append(want, ".", "..")
	slices.Sort(want)
	var got []string
	var cookies []uint64
	err := tree.ReadDir(nid, 0, func(e Dirent) bool {
		got, cookies = append(got, e.Name), append(cookies, e.Next)
		if c := n.Children[e.Name]; c != nil && e.Type.Mode() != c.Mode&unix.S_IFMT {
			t.Errorf("%s: entry %q has type %d", p, e.Name, e.Type)
		}
		return true
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: %d entries %.300q, want %d, %v", p, len(got), got, len(want), err)
		return
	}
	for i := 0; i < len(cookies); i += 1 + len(cookies)/10 {
		var rest []string
		if err := tree.ReadDir(nid, cookies[i], func(e Dirent) bool { rest = append(rest, e.Name); return true }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(rest, want[i+1:]) {
			t.Errorf("%s: from cookie %d: %d entries, want %d", p, cookies[i], len(rest), len(want)-i-1)
		}
	}
	for _, name := range []string{"", "no such name", "\xff\xff\xff", "..!", "zzzz", strings.Repeat("n", 300)} {
		if _, ok := n.Children[name]; ok {
			continue
		}
		if _, err := tree.Lookup(nid, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: look up %q: %v", p, name, err)
		}
	}
}

func TestPathAndImplicit(t *testing.T) {
	l := layerOf(implicit("usr/share/doc"), dir("usr/share/x"), implicit("var"), dir("etc"))
	x := l.open(t)
	nids, err := x.Implicit()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	add := func(_ uint64, p string) error { got = append(got, p); return nil }
	if err := x.Tree().Paths(nids, add); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if want := []string{"/usr", "/usr/share", "/usr/share/doc", "/var"}; !slices.Equal(got, want) {
		t.Errorf("implicit directories %q, want %q", got, want)
	}
	got = nil
	if err := x.Tree().Paths([]uint64{x.Tree().Root()}, add); err != nil || !slices.Equal(got, []string{"/"}) {
		t.Errorf("path of the root: %q, %v", got, err)
	}
}

func TestDeterministic(t *testing.T) {
	a := nasty()
	first := a.write(t)
	if !bytes.Equal(first, a.write(t)) {
		t.Error("the second Write of a draft gives other bytes")
	}
	if !bytes.Equal(first, nasty().write(t)) {
		t.Error("equal drafts give other bytes")
	}
}

// TestRefused is what Write must say no to, and name.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		layer *layer
		want  string
	}{
		"long name":      {layerOf(file("d/"+strings.Repeat("n", 256), "")), "/d: name of 256 bytes"},
		"name with NUL":  {layerOf(file("a\x00b", "")), "not allowed"},
		"long target":    {layerOf(symlink("s", strings.Repeat("t", 4096))), "/s: target of 4096 bytes"},
		"empty target":   {layerOf(symlink("s", "")), "/s: target of 0 bytes"},
		"long attribute": {layerOf(file("f", "", xattr("user.x", strings.Repeat("v", 65536)))), "/f: extended attribute \"user.x\" has 65536 bytes"},
		"attributes": {layerOf(file("f", "", func(n *Node) {
			n.Xattrs = map[string]string{}
			for i := range 5 {
				n.Xattrs["user."+string(rune('a'+i))] = strings.Repeat("v", 60000)
			}
		})), "at most 262148 of one file"},
		"misaligned piece":  {layerOf(file("x", "x"), pieced("f", 10, Extent{Device: 513, Size: 10})), "/f: extent 0: device offset 513"},
		"outside of device": {layerOf(pieced("f", 1000, Extent{Device: 512, Size: 1000})), "/f: extent 0: device range"},
		"half a block":      {layerOf(pieced("f", 1000, onDevice(0, "x"), onDevice(512, "y"))), "/f: extent 0: file range"},
		"beyond the file":   {layerOf(pieced("f", 100, onDevice(0, strings.Repeat("x", 200)))), "/f: extent 0: file range"},
		"overlap":           {layerOf(pieced("f", 4096, onDevice(0, strings.Repeat("x", 1024)), onDevice(512, strings.Repeat("x", 512)))), "/f: extent 1: file range"},
		"no type":           {layerOf(node("n", 0o644, 0)), "/n: no type"},
		"linked directory":  {layerOf(dir("d"), hardlink("e", "d")), "second link to a directory"},
		"huge table":        {layerOf(pieced("f", 1<<40, onDevice(512, strings.Repeat("x", 512)))), "/f: sparse file of 1099511627776 bytes with pieces aligned to 512 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Write(new(bytes.Buffer), &c.layer.draft)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// TestDropped: attributes that EROFS has no number for are not in the tree.
func TestDropped(t *testing.T) {
	l := layerOf(file("f", "", xattr("system.nfs4_acl", "x"), xattr("com.apple.quarantine", "y"), xattr("user.", "z")))
	x := l.open(t)
	nid, err := x.Tree().Lookup(rootNid, "f")
	if err != nil {
		t.Fatal(err)
	}
	if names, err := x.Tree().ListXattrs(nid); err != nil || len(names) != 0 {
		t.Errorf("%q, %v", names, err)
	}
}

func TestSpansFind(t *testing.T) {
	s, err := nasty().open(t).Spans()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range s {
		for off, want := range map[int64]int{p.Device - 1: i - 1, p.Device: i, p.Device + p.Size - 1: i} {
			if got := s.Find(off); got != want {
				t.Fatalf("Find(%d) = %d, want %d", off, got, want)
			}
		}
	}
	last := s[len(s)-1]
	if got := s.Find(last.Device + last.Size); got != -1 {
		t.Errorf("behind the end: %d", got)
	}
}
