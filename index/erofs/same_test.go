package erofs_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// TestSame compares trees with the drafts that they were written from, and with drafts that differ
// in one thing.
func TestSame(t *testing.T) {
	for name, l := range map[string]*Layer{"nasty": Nasty(), "empty": LayerOf()} {
		if err := index.Same(l.Open(t), l.Draft.Root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	build := func() *Layer {
		return LayerOf(
			File("a/one", strings.Repeat("1", 1000)), File("a/two",
				strings.Repeat("2", 1000)), Hardlink("linked", "a/one"),
			File("x", "x", Xattr("user.n", "v")), Symlink("s", "target"), Node("null",
				unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), Implicit("i/j"),
			Pieced("p", 100_000, OnDevice(4096, strings.Repeat("d", 4096)),
				InTree(8192, strings.Repeat("t", 512))),
		)
	}
	of := func(l *Layer, p string) *erofs.Node {
		i := strings.LastIndex(p, "/")
		return l.Dir(p[:max(i, 0)]).Children[p[i+1:]]
	}
	for name, change := range map[string]func(l *Layer){
		"one file's bytes for another's": func(l *Layer) {
			of(l, "a/one").Extents[0].Device = of(l,
				"a/two").Extents[0].Device
		},
		"bytes from a file's middle": func(l *Layer) {
			of(l,
				"a/one").Extents[0].Device += erofs.BlockSize
		},
		"shorter": func(l *Layer) {
			of(l, "a/two").Size,
				of(l, "a/two").Extents[0].Size = 999, 999
		},
		"setuid": func(l *Layer) { of(l, "x").Mode |= unix.S_ISUID },
		"owner":  func(l *Layer) { of(l, "x").UID = 1 },
		"mtime": func(l *Layer) {
			of(l, "x").Mtime = of(l,
				"x").Mtime.Add(1)
		},
		"xattr's value": func(l *Layer) { of(l, "x").Xattrs["user.n"] = "w" },
		"one more xattr": func(l *Layer) {
			of(l,
				"x").Xattrs["security.capability"] = "cap"
		},
		"no xattr":      func(l *Layer) { of(l, "x").Xattrs = nil },
		"target":        func(l *Layer) { of(l, "s").Target = "/etc/shadow" },
		"device number": func(l *Layer) { of(l, "null").Rdev = unix.Mkdev(8, 0) },
		"type": func(l *Layer) {
			of(l,
				"null").Mode = unix.S_IFBLK | 0o666
		},
		"no hard link": func(l *Layer) {
			c := *of(l,
				"a/one")
			l.Draft.Root.Children["linked"] = &c
		},
		"hard link to another": func(l *Layer) {
			l.Draft.Root.Children["linked"] = of(l,
				"a/two")
		},
		"more files":  func(l *Layer) { Symlink("a/three", "3")(l) },
		"fewer files": func(l *Layer) { delete(of(l, "a").Children, "two") },
		"other name": func(l *Layer) {
			c := of(l,
				"a").Children
			c["zwei"] = c["two"]
			delete(c, "two")
		},
		"not implicit": func(l *Layer) { of(l, "i/j").Implicit = false },
		"hole for bytes": func(l *Layer) {
			of(l, "p").Extents = of(l,
				"p").Extents[1:]
		},
		"bytes for a hole": func(l *Layer) {
			of(l, "p").Extents = append(of(l, "p").Extents,
				erofs.Extent{File: 10_240, Device: 512, Size: 512})
		},
		"bytes in the tree": func(l *Layer) {
			of(l,
				"p").Extents[1].Data = []byte(strings.Repeat("u", 512))
		},
		"moved in the file": func(l *Layer) { of(l, "p").Extents[0].File = 0 },
	} {
		forged, honest := build(), build()
		if err := index.Same(forged.Open(t), honest.Draft.Root); err != nil {
			t.Fatalf("%s: before the change: %v", name, err)
		}
		change(forged)
		x := forged.Open(t)
		if err := index.Check(t.Context(), x); err != nil {
			t.Errorf("%s: not even sound: %v", name, err)
		}
		if err := index.Same(x, build().Draft.Root); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSameKept: a file that a scan keeps in the tree may lie in the device alone, as older writers
// had it, but nowhere else, and with no other content.
func TestSameKept(t *testing.T) {
	content := strings.Repeat("root:x:0:0::/:", 100)
	build := func() (*Layer, *erofs.Extent) {
		l := LayerOf(File("before", "b"), File("passwd", content))
		e := &l.Draft.Root.Children["passwd"].Extents[0]
		e.Data = []byte(content)
		return l, e
	}
	honest, _ := build()
	for name, c := range map[string]struct {
		change func(e *erofs.Extent)
		same   bool
	}{
		"kept":     {func(*erofs.Extent) {}, true},
		"in place": {func(e *erofs.Extent) { e.Data = nil }, true},
		"elsewhere": {func(e *erofs.Extent) { e.Data = nil; e.Device -= erofs.BlockSize },
			false},
		"other bytes":  {func(e *erofs.Extent) { e.Data[700] = 'X' }, false},
		"other device": {func(e *erofs.Extent) { e.Device = 0 }, true}, // which no index says
	} {
		l, e := build()
		c.change(e)
		if err := index.Same(l.Open(t), honest.Draft.Root); (err == nil) != c.same {
			t.Errorf("%s: %v", name, err)
		}
	}
}
