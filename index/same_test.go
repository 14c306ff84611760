package index

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSame compares trees with the drafts that they were written from, and with drafts that differ
// in one thing.
func TestSame(t *testing.T) {
	for name, l := range map[string]*layer{"nasty": nasty(), "empty": layerOf()} {
		if err := Same(l.open(t), l.draft.Root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	build := func() *layer {
		return layerOf(
			file("a/one", strings.Repeat("1", 1000)), file("a/two", strings.Repeat("2", 1000)), hardlink("linked", "a/one"),
			file("x", "x", xattr("user.n", "v")), symlink("s", "target"), node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), implicit("i/j"),
			pieced("p", 100_000, onDevice(4096, strings.Repeat("d", 4096)), inTree(8192, strings.Repeat("t", 512))),
		)
	}
	of := func(l *layer, p string) *Node {
		i := strings.LastIndex(p, "/")
		return l.dir(p[:max(i, 0)]).Children[p[i+1:]]
	}
	for name, change := range map[string]func(l *layer){
		"one file's bytes for another's": func(l *layer) { of(l, "a/one").Extents[0].Device = of(l, "a/two").Extents[0].Device },
		"bytes from a file's middle":     func(l *layer) { of(l, "a/one").Extents[0].Device += BlockSize },
		"shorter":                        func(l *layer) { of(l, "a/two").Size, of(l, "a/two").Extents[0].Size = 999, 999 },
		"setuid":                         func(l *layer) { of(l, "x").Mode |= unix.S_ISUID },
		"owner":                          func(l *layer) { of(l, "x").UID = 1 },
		"mtime":                          func(l *layer) { of(l, "x").Mtime = of(l, "x").Mtime.Add(1) },
		"xattr's value":                  func(l *layer) { of(l, "x").Xattrs["user.n"] = "w" },
		"one more xattr":                 func(l *layer) { of(l, "x").Xattrs["security.capability"] = "cap" },
		"no xattr":                       func(l *layer) { of(l, "x").Xattrs = nil },
		"target":                         func(l *layer) { of(l, "s").Target = "/etc/shadow" },
		"device number":                  func(l *layer) { of(l, "null").Rdev = unix.Mkdev(8, 0) },
		"type":                           func(l *layer) { of(l, "null").Mode = unix.S_IFBLK | 0o666 },
		"no hard link":                   func(l *layer) { c := *of(l, "a/one"); l.draft.Root.Children["linked"] = &c },
		"hard link to another":           func(l *layer) { l.draft.Root.Children["linked"] = of(l, "a/two") },
		"more files":                     func(l *layer) { symlink("a/three", "3")(l) },
		"fewer files":                    func(l *layer) { delete(of(l, "a").Children, "two") },
		"other name":                     func(l *layer) { c := of(l, "a").Children; c["zwei"] = c["two"]; delete(c, "two") },
		"not implicit":                   func(l *layer) { of(l, "i/j").Implicit = false },
		"hole for bytes":                 func(l *layer) { of(l, "p").Extents = of(l, "p").Extents[1:] },
		"bytes for a hole": func(l *layer) {
			of(l, "p").Extents = append(of(l, "p").Extents, Extent{File: 10_240, Device: 512, Size: 512})
		},
		"bytes in the tree": func(l *layer) { of(l, "p").Extents[1].Data = []byte(strings.Repeat("u", 512)) },
		"moved in the file": func(l *layer) { of(l, "p").Extents[0].File = 0 },
	} {
		forged, honest := build(), build()
		if err := Same(forged.open(t), honest.draft.Root); err != nil {
			t.Fatalf("%s: before the change: %v", name, err)
		}
		change(forged)
		x := forged.open(t)
		if err := Check(t.Context(), x); err != nil {
			t.Errorf("%s: not even sound: %v", name, err)
		}
		if err := Same(x, build().draft.Root); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSameKept: a file that a scan keeps in the tree may lie in the device alone, as older writers
// had it, but nowhere else, and with no other content.
func TestSameKept(t *testing.T) {
	content := strings.Repeat("root:x:0:0::/:", 100)
	build := func() (*layer, *Extent) {
		l := layerOf(file("before", "b"), file("passwd", content))
		e := &l.draft.Root.Children["passwd"].Extents[0]
		e.Data = []byte(content)
		return l, e
	}
	honest, _ := build()
	for name, c := range map[string]struct {
		change func(e *Extent)
		same   bool
	}{
		"kept":         {func(*Extent) {}, true},
		"in place":     {func(e *Extent) { e.Data = nil }, true},
		"elsewhere":    {func(e *Extent) { e.Data = nil; e.Device -= BlockSize }, false},
		"other bytes":  {func(e *Extent) { e.Data[700] = 'X' }, false},
		"other device": {func(e *Extent) { e.Device = 0 }, true}, // which no index says
	} {
		l, e := build()
		c.change(e)
		if err := Same(l.open(t), honest.draft.Root); (err == nil) != c.same {
			t.Errorf("%s: %v", name, err)
		}
	}
}
