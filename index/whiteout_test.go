package index

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var opaque = xattr(xattrOpaque, opaqueYes)

func whiteout(p string) entry { return node(p, unix.S_IFCHR, 0) }

func TestMarks(t *testing.T) {
	itself := func(l *layer) { l.dir("a").Xattrs = map[string]string{xattrOpaque: opaqueYes} }
	for name, c := range map[string]struct {
		layer *layer
		want  Marks
	}{
		"none": {layerOf(file("a/b", "x"), node("null", unix.S_IFCHR|0o666, 0),
			symlink("l", "a")), Marks{}},
		"whiteout": {layerOf(file("a/b", "x"), whiteout("a/gone")), Marks{Any: true}},
		"opaque": {layerOf(dir("a", opaque), dir("a/b"), file("a/b/c", "x"), implicit("c")),
			Marks{Any: true}},
		"opaque root": {layerOf(dir("/", opaque), file("a", "x")), Marks{Any: true}},
		"opaque, implied": {layerOf(dir("a", opaque), dir("a/b"), file("a/b/c/d", "x")),
			Marks{Any: true, Unsure: true}},
		"implied itself": {layerOf(itself), Marks{Any: true}},
		"implied, opaque": {layerOf(implicit("a"), dir("a/b", opaque), file("a/b/c", "x")),
			Marks{Any: true}},
		"another's xattrs": {layerOf(dir("a", xattr(xattrOpaque, "x"), xattr("user.a", opaqueYes))),
			Marks{}},
	} {
		if got, err := c.layer.open(t).Marks(); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// TestBare: the copy is the index of a tar without whiteouts.
func TestBare(t *testing.T) {
	build := func(marked bool) *layer {
		with := func(e entry) entry {
			if marked {
				return e
			}
			return func(*layer) {}
		}
		attrs := []attr{mode(0o700), xattr("user.a", "a")}
		if marked {
			attrs = append(attrs, opaque)
		}
		return layerOf(file("etc/x", "x"), with(whiteout("gone")), with(whiteout("etc/gone")), dir("d",
			attrs...),
			file("d/f", "f"), implicit("i/j"), with(whiteout("i/j/k")), hardlink("i/h", "etc/x"),
			node("null", unix.S_IFCHR|0o600, 0), symlink("l", "etc"), pieced("in-tree", 4096, inTree(0,
				strings.Repeat("d", 512))))
	}
	var b bytes.Buffer
	if err := Bare(&b, build(true).open(t)); err != nil {
		t.Fatal(err)
	}
	got := openBytes(t, b.Bytes())
	if err := Check(context.Background(), got); err != nil {
		t.Error(err)
	}
	if err := Same(got, build(false).draft.Root); err != nil {
		t.Error(err)
	}
	if n, err := got.Implicit(); err != nil || len(n) != 2+1 { // i, i/j, etc
		t.Errorf("implied directories %v, %v", n, err)
	}
}

// TestPatchXattrs: attributes are added, and none is replaced.
func TestPatchXattrs(t *testing.T) {
	build := func() *layer {
		return layerOf(file("a/b/c", "c"), dir("a/b", xattr("user.has", "1")),
			file("z", "z"))
	}
	l, want := build(), build()
	x := l.open(t)
	a := Attr{Mode: 0o1777, UID: 3, GID: 4, Mtime: time.Unix(9, 8)}
	for _, p := range []string{"/a", "/a/b"} {
		n := want.dir(p)
		n.Mode, n.UID, n.GID, n.Mtime = unix.S_IFDIR|a.Mode, a.UID, a.GID, a.Mtime
	}
	a.Xattrs = map[string]string{"user.has": "2", "security.new": "3"}
	want.dir("/a").Xattrs = a.Xattrs
	want.dir("/a/b").Xattrs = map[string]string{"user.has": "1", "security.new": "3"}
	var b bytes.Buffer
	if err := Patch(&b, x, map[uint64]Attr{lookupPath(t, x.Tree(), "/a"): a, lookupPath(t, x.Tree(),
		"/a/b"): a}); err != nil {
		t.Fatal(err)
	}
	got := openBytes(t, b.Bytes())
	if err := Check(context.Background(), got); err != nil {
		t.Error(err)
	}
	if err := Same(got, want.draft.Root); err != nil {
		t.Error(err)
	}
	if err := Patch(&b, x, map[uint64]Attr{lookupPath(t, x.Tree(), "/z"): a}); err == nil {
		t.Error("a file is patched like a directory")
	}
}

// BenchmarkMarks is what each first layer waits for.
func BenchmarkMarks(b *testing.B) {
	x := wide(30_000).open(b)
	for b.Loop() {
		if _, err := x.Marks(); err != nil {
			b.Fatal(err)
		}
	}
}
