package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// TestTree compares what Tree reads with what Write was given.
func TestTree(t *testing.T) {
	for name, l := range map[string]*Layer{
		"nasty": Nasty(),
		"empty": LayerOf(),
		"large root": LayerOf(Dir("/", Xattr("user.root", strings.Repeat("r", 400))),
			Entries(3000, func(i int) Entry {
				return File(strings.Repeat("f",
					i%200)+string(rune('0'+i%10))+string(rune('a'+i/200)), "")
			})),
	} {
		t.Run(name, func(t *testing.T) {
			x := l.Open(t)
			if err := index.Check(context.Background(), x); err != nil {
				t.Fatal(err)
			}
			compareTree(t, l, x.Tree())
		})
	}
}

func compareTree(t *testing.T, l *Layer, tree *erofs.Tree) {
	counts, nids := links(l), map[*erofs.Node]uint64{}
	device := bytes.NewReader(l.Device.Bytes())
	walk(l, func(p string, n, parent *erofs.Node) {
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
		if ino.Mode != n.Mode || ino.UID != n.UID || ino.GID != n.GID || !ino.Mtime.Equal(mtime) ||
			ino.Rdev != n.Rdev || int(ino.Nlink) != counts[n] {
			t.Errorf("%s: %+v, want %+v with %d links", p, ino, n, counts[n])
		}
		compareXattrs(t, p, n, tree, nid)
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			compareContent(t, l, p, n, tree, ino, device)
		case unix.S_IFLNK:
			if got, err := tree.Readlink(nid); err != nil || got != n.Target ||
				ino.Size != int64(len(n.Target)) {
				t.Errorf("%s: target %q, %v, size %d", p, got, err, ino.Size)
			}
		case unix.S_IFDIR:
			compareDir(t, p, n, tree, nid)
		}
	})
}

func compareXattrs(t *testing.T, p string, n *erofs.Node, tree *erofs.Tree, nid uint64) {
	t.Helper()
	got := map[string]string{}
	err := tree.Xattrs(nid, func(name string, value []byte) bool {
		got[name] = string(value)
		return true
	})
	if err != nil || !maps.Equal(got, n.Xattrs) {
		t.Errorf("%s: attributes %q, %v", p, slices.Collect(maps.Keys(got)), err)
	}
	for name, want := range n.Xattrs {
		if got, err := tree.Xattr(nid, name); err != nil || string(got) != want {
			t.Errorf("%s: attribute %s: %d bytes, %v, want %d", p, name, len(got), err, len(want))
		}
	}
	if _, err := tree.Xattr(nid, "user.none"); !errors.Is(err, erofs.ErrNoXattr) {
		t.Errorf("%s: attribute that is not there: %v", p, err)
	}
}

// piece is a range of a file.
type piece struct{ off, size int64 }

func compareContent(t *testing.T, l *Layer, p string, n *erofs.Node, tree *erofs.Tree, ino erofs.Inode, device *bytes.Reader) {
	t.Helper()
	if ino.Size != n.Size {
		t.Errorf("%s: size %d, want %d", p, ino.Size, n.Size)
	}
	for _, r := range []piece{{0, n.Size}, {0, 1}, {n.Size / 2, n.Size}, {n.Size - 1, 10}, {511, 2},
		{1000, 5000}} {
		if r.off < 0 || r.off > n.Size {
			continue
		}
		var got []byte
		err := tree.Extents(ino, r.off, r.size, func(e erofs.Extent) error {
			if e.File != r.off+int64(len(got)) || e.Size == 0 {
				t.Errorf("%s: piece %d+%d at offset %d", p, e.File, e.Size, r.off+int64(len(got)))
			}
			b := make([]byte, e.Size)
			switch {
			case e.Data != nil:
				copy(b, e.Data)
			case e.Device != erofs.Hole:
				if _, err := device.ReadAt(b, e.Device); err != nil {
					return err
				}
			}
			got = append(got, b...)
			return nil
		})
		if err != nil || !bytes.Equal(got, content(t, device, n, r.off, r.size)) {
			t.Errorf("%s: wrong content at %d+%d: %v", p, r.off, r.size, err)
		}
	}
}

func compareDir(t *testing.T, p string, n *erofs.Node, tree *erofs.Tree, nid uint64) {
	t.Helper()
	want := slices.Sorted(maps.Keys(n.Children))
	want = append(want, ".", "..")
	slices.Sort(want)
	var got []string
	var cookies []uint64
	err := tree.ReadDir(nid, 0, func(e erofs.Dirent) bool {
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
		if err := tree.ReadDir(nid, cookies[i],
			func(e erofs.Dirent) bool { rest = append(rest, e.Name); return true }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(rest, want[i+1:]) {
			t.Errorf("%s: from cookie %d: %d entries, want %d", p, cookies[i], len(rest),
				len(want)-i-1)
		}
	}
	for _, name := range []string{"", "no such name", "\xff\xff\xff", "..!", "zzzz",
		strings.Repeat("n", 300)} {
		if _, ok := n.Children[name]; ok {
			continue
		}
		if _, err := tree.Lookup(nid, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: look up %q: %v", p, name, err)
		}
	}
}

func TestPathAndImplicit(t *testing.T) {
	l := LayerOf(Implicit("usr/share/doc"), Dir("usr/share/x"), Implicit("var"), Dir("etc"))
	x := l.Open(t)
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
	if err := x.Tree().Paths([]uint64{x.Tree().Root()}, add); err != nil ||
		!slices.Equal(got, []string{"/"}) {
		t.Errorf("path of the root: %q, %v", got, err)
	}
}

func TestDeterministic(t *testing.T) {
	a := Nasty()
	first := a.Write(t)
	if !bytes.Equal(first, a.Write(t)) {
		t.Error("the second Write of a draft gives other bytes")
	}
	if !bytes.Equal(first, Nasty().Write(t)) {
		t.Error("equal drafts give other bytes")
	}
}

// TestRefused is what Write must say no to, and name.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		layer *Layer
		want  string
	}{
		"long name": {LayerOf(File("d/"+strings.Repeat("n", 256), "")),
			"/d: name of 256 bytes"},
		"name with NUL": {LayerOf(File("a\x00b", "")), "not allowed"},
		"long target": {LayerOf(Symlink("s", strings.Repeat("t", 4096))),
			"/s: target of 4096 bytes"},
		"empty target": {LayerOf(Symlink("s", "")), "/s: target of 0 bytes"},
		"long attribute": {LayerOf(File("f", "", Xattr("user.x", strings.Repeat("v", 65536)))),
			"/f: extended attribute \"user.x\" has 65536 bytes"},
		"attributes": {LayerOf(File("f", "", func(n *erofs.Node) {
			n.Xattrs = map[string]string{}
			for i := range 5 {
				n.Xattrs["user."+string(rune('a'+i))] = strings.Repeat("v", 60000)
			}
		})), "at most 262148 of one file"},
		"misaligned piece": {LayerOf(File("x", "x"),
			Pieced("f", 10, erofs.Extent{Device: 513,
				Size: 10})), "/f: extent 0: device offset 513"},
		"outside of device": {LayerOf(Pieced("f", 1000, erofs.Extent{Device: 512, Size: 1000})),
			"/f: extent 0: device range"},
		"half a block": {LayerOf(Pieced("f", 1000, OnDevice(0, "x"), OnDevice(512, "y"))),
			"/f: extent 0: file range"},
		"beyond the file": {LayerOf(Pieced("f", 100, OnDevice(0, strings.Repeat("x", 200)))),
			"/f: extent 0: file range"},
		"overlap": {LayerOf(Pieced("f", 4096, OnDevice(0, strings.Repeat("x", 1024)),
			OnDevice(512, strings.Repeat("x", 512)))), "/f: extent 1: file range"},
		"no type":          {LayerOf(Node("n", 0o644, 0)), "/n: no type"},
		"linked directory": {LayerOf(Dir("d"), Hardlink("e", "d")), "second link to a directory"},
		"huge table": {LayerOf(Pieced("f", 1<<40, OnDevice(512, strings.Repeat("x", 512)))),
			"/f: sparse file of 1099511627776 bytes with pieces aligned to 512 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := index.Write(new(bytes.Buffer), &c.layer.Draft)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// TestDropped: attributes that EROFS has no number for are not in the tree.
func TestDropped(t *testing.T) {
	l := LayerOf(File("f", "", Xattr("system.nfs4_acl", "x"), Xattr("com.apple.quarantine", "y"),
		Xattr("user.", "z")))
	x := l.Open(t)
	nid, err := x.Tree().Lookup(rootNid, "f")
	if err != nil {
		t.Fatal(err)
	}
	err = x.Tree().Xattrs(nid, func(name string, _ []byte) bool {
		t.Errorf("%q", name)
		return true
	})
	if err != nil {
		t.Error(err)
	}
}

// content returns what a file has to hold in a range.
func content(t testing.TB, device io.ReaderAt, n *erofs.Node, off, size int64) []byte {
	t.Helper()
	b := make([]byte, min(size, n.Size-off))
	for _, e := range n.Extents {
		from, to := max(off, e.File), min(off+int64(len(b)), e.File+e.Size)
		if from >= to {
			continue
		}
		if e.Data != nil {
			copy(b[from-off:to-off], e.Data[from-e.File:])
		} else if _, err := device.ReadAt(b[from-off:to-off], e.Device+from-e.File); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// walk calls fn for every name of the tree, directories before what is in them.
func walk(l *Layer, fn func(p string, n, parent *erofs.Node)) {
	var visit func(p string, n, parent *erofs.Node)
	visit = func(p string, n, parent *erofs.Node) {
		fn(p, n, parent)
		for name, c := range n.Children {
			visit(path.Join(p, name), c, n)
		}
	}
	visit("/", l.Draft.Root, l.Draft.Root)
}

// links counts the links that every node has to have.
func links(l *Layer) map[*erofs.Node]int {
	links := map[*erofs.Node]int{}
	walk(l, func(_ string, n, parent *erofs.Node) {
		links[n]++
		if n.Mode&unix.S_IFMT == unix.S_IFDIR {
			links[n]++
			if n != parent {
				links[parent]++
			}
		}
	})
	return links
}
