package index_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

var opaque = Xattr("trusted.overlay.opaque", "y")

func whiteout(p string) Entry { return Node(p, unix.S_IFCHR, 0) }

func TestMarks(t *testing.T) {
	itself := func(l *Layer) { l.Dir("a").Xattrs = map[string]string{"trusted.overlay.opaque": "y"} }
	for name, c := range map[string]struct {
		layer *Layer
		want  index.Marks
	}{
		"none": {LayerOf(File("a/b", "x"), Node("null", unix.S_IFCHR|0o666, 0),
			Symlink("l", "a")), index.Marks{}},
		"whiteout": {LayerOf(File("a/b", "x"), whiteout("a/gone")), index.Marks{Any: true}},
		"opaque": {LayerOf(Dir("a", opaque), Dir("a/b"), File("a/b/c", "x"), Implicit("c")),
			index.Marks{Any: true}},
		"opaque root": {LayerOf(Dir("/", opaque), File("a", "x")), index.Marks{Any: true}},
		"opaque, implied": {LayerOf(Dir("a", opaque), Dir("a/b"), File("a/b/c/d", "x")),
			index.Marks{Any: true, Unsure: true}},
		"implied itself": {LayerOf(itself), index.Marks{Any: true}},
		"implied, opaque": {LayerOf(Implicit("a"), Dir("a/b", opaque), File("a/b/c", "x")),
			index.Marks{Any: true}},
		"another's xattrs": {LayerOf(Dir("a", Xattr("trusted.overlay.opaque", "x"),
			Xattr("user.a", "y"))),
			index.Marks{}},
	} {
		if got, err := c.layer.Open(t).Marks(); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// TestBare: the copy is the index of a tar without whiteouts.
func TestBare(t *testing.T) {
	build := func(marked bool) *Layer {
		with := func(e Entry) Entry {
			if marked {
				return e
			}
			return func(*Layer) {}
		}
		attrs := []Attr{Mode(0o700), Xattr("user.a", "a")}
		if marked {
			attrs = append(attrs, opaque)
		}
		return LayerOf(File("etc/x", "x"), with(whiteout("gone")), with(whiteout("etc/gone")),
			Dir("d",
				attrs...),
			File("d/f", "f"), Implicit("i/j"), with(whiteout("i/j/k")), Hardlink("i/h", "etc/x"),
			Node("null", unix.S_IFCHR|0o600, 0), Symlink("l", "etc"), Pieced("in-tree", 4096,
				InTree(0,
					strings.Repeat("d", 512))))
	}
	var b bytes.Buffer
	if err := index.Bare(&b, build(true).Open(t)); err != nil {
		t.Fatal(err)
	}
	got := OpenBytes(t, b.Bytes())
	if err := index.Check(context.Background(), got); err != nil {
		t.Error(err)
	}
	if err := index.Same(got, build(false).Draft.Root); err != nil {
		t.Error(err)
	}
	if n, err := got.Implicit(); err != nil || len(n) != 2+1 { // i, i/j, etc
		t.Errorf("implied directories %v, %v", n, err)
	}
}

// TestPatchXattrs: attributes are added, and none is replaced.
func TestPatchXattrs(t *testing.T) {
	build := func() *Layer {
		return LayerOf(File("a/b/c", "c"), Dir("a/b", Xattr("user.has", "1")),
			File("z", "z"))
	}
	l, want := build(), build()
	x := l.Open(t)
	a := index.Attr{Mode: 0o1777, UID: 3, GID: 4, Mtime: time.Unix(9, 8)}
	for _, p := range []string{"/a", "/a/b"} {
		n := want.Dir(p)
		n.Mode, n.UID, n.GID, n.Mtime = unix.S_IFDIR|a.Mode, a.UID, a.GID, a.Mtime
	}
	a.Xattrs = map[string]string{"user.has": "2", "security.new": "3"}
	want.Dir("/a").Xattrs = a.Xattrs
	want.Dir("/a/b").Xattrs = map[string]string{"user.has": "1", "security.new": "3"}
	var b bytes.Buffer
	if err := index.Patch(&b, x, map[uint64]index.Attr{LookupPath(t, x.Tree(), "/a"): a,
		LookupPath(t, x.Tree(),
			"/a/b"): a}); err != nil {
		t.Fatal(err)
	}
	got := OpenBytes(t, b.Bytes())
	if err := index.Check(context.Background(), got); err != nil {
		t.Error(err)
	}
	if err := index.Same(got, want.Draft.Root); err != nil {
		t.Error(err)
	}
	if err := index.Patch(&b, x, map[uint64]index.Attr{LookupPath(t, x.Tree(),
		"/z"): a}); err == nil {
		t.Error("a file is patched like a directory")
	}
}

// BenchmarkMarks is what each first layer waits for.
func BenchmarkMarks(b *testing.B) {
	x := Wide(30_000).Open(b)
	for b.Loop() {
		if _, err := x.Marks(); err != nil {
			b.Fatal(err)
		}
	}
}
