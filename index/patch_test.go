package index

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPatch(t *testing.T) {
	build := func() *layer {
		return layerOf(implicit("usr/share"), dir("usr/share/doc", mode(0o700)), implicit("var"), file("var/f", "content"), file("etc/x", "x"))
	}
	l := build()
	x := l.open(t)
	attrs := map[uint64]Attr{}
	want := build()
	for p, a := range map[string]Attr{
		"/usr":       {Mode: unix.S_IFDIR | 0o2775, UID: 10, GID: 4294967294, Mtime: time.Unix(-5, 7)},
		"/usr/share": {Mode: 0o1777, UID: 11, GID: 12, Mtime: time.Unix(1<<33, 999999999)},
		"/":          {Mode: 0o711, Mtime: time.Unix(1, 0)},
	} {
		nid := uint64(rootNid)
		if p != "/" {
			nid = lookupPath(t, x.Tree(), p)
		}
		attrs[nid] = a
		n := want.dir(p)
		n.Mode, n.UID, n.GID, n.Mtime = unix.S_IFDIR|a.Mode&0o7777, a.UID, a.GID, a.Mtime
	}
	var b bytes.Buffer
	if err := Patch(&b, x, attrs); err != nil {
		t.Fatal(err)
	}
	// A patched index is the one that a scan of a tar with these directories had made.
	if !bytes.Equal(b.Bytes(), want.write(t)) {
		t.Error("the patched file is not the one of a tree with these attributes")
	}
	if err := Check(context.Background(), openBytes(t, b.Bytes())); err != nil {
		t.Error(err)
	}
	if err := Patch(new(bytes.Buffer), x, map[uint64]Attr{lookupPath(t, x.Tree(), "/var/f"): {}}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("patch of a file: %v", err)
	}
}

// TestPatchReader reads in pieces of all sizes, so that patches lie across their ends.
func TestPatchReader(t *testing.T) {
	base := bytes.Repeat([]byte{1}, 1000)
	r := &patchReader{r: bytes.NewReader(base)}
	want := bytes.Clone(base)
	for _, off := range []int64{0, 100, 164, 500, 936} {
		p := inodePatch{off: off}
		for i := range p.b {
			p.b[i] = byte(off) + byte(i) + 2
		}
		copy(want[off:], p.b[:])
		r.patches = append(r.patches, p)
	}
	for size := 1; size <= 1000; size++ {
		for off := 0; off+size <= 1000; off += 1 + size/3 {
			got := make([]byte, size)
			if _, err := r.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+size]) {
				t.Fatalf("%d bytes at %d: %v", size, off, err)
			}
		}
	}
}
