package index

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// smallLayers are seeds: little of everything.
func smallLayers() []*layer {
	return []*layer{
		layerOf(),
		layerOf(file("a/b", "content"), hardlink("c", "a/b"), implicit("d/e"), symlink("s", "target"), node("n", unix.S_IFCHR, 0)),
		layerOf(file("x", "x", xattr("user.n", "value"), xattr("security.capability", "cap")), dir("o", xattr("trusted.overlay.opaque", "y"))),
		layerOf(pieced("p", 100000, onDevice(4096, "device"+string(make([]byte, 4090))), inTree(8192, string(make([]byte, 512))))),
		layerOf(entries(60, func(i int) entry { return file("many/"+string(rune('A'+i)), "") }), symlink("l", string(bytes.Repeat([]byte{'l'}, 600)))),
	}
}

// FuzzOpen reads all of an index file that came from anywhere: no panic, no
// endless loop, and what Check accepts is read without an error.
func FuzzOpen(f *testing.F) {
	for _, l := range smallLayers() {
		f.Add(l.write(f), false)
		f.Add(l.write(f), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, forged bool) {
		if forged && len(b) >= HeaderSize {
			b = resign(bytes.Clone(b)) // so that damage gets past the digests
		}
		x, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		checked := Check(context.Background(), x)
		if checked != nil && !errors.Is(checked, ErrCorrupt) {
			t.Fatalf("not ErrCorrupt: %v", checked)
		}
		if refused := readAll(x); checked == nil && refused > 0 {
			t.Fatalf("Check accepts it, %d reads fail", refused)
		}
		if checked != nil {
			return
		}
		root, err := x.Tree().Inode(rootNid)
		if err != nil {
			t.Fatal(err)
		}
		attr := Attr{Mode: 0o700, UID: root.UID + 1, Mtime: root.Mtime}
		var patched bytes.Buffer
		if err := Patch(&patched, x, map[uint64]Attr{rootNid: attr}); err != nil {
			t.Fatal(err)
		}
		if err := Check(context.Background(), openBytes(t, patched.Bytes())); err != nil {
			t.Fatal(err)
		}
	})
}
