package index_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

func TestPatch(t *testing.T) {
	build := func() *Layer {
		return LayerOf(Implicit("usr/share"), Dir("usr/share/doc", Mode(0o700)), Implicit("var"),
			File("var/f", "content"), File("etc/x", "x"))
	}
	l := build()
	x := l.Open(t)
	attrs := map[uint64]index.Attr{}
	want := build()
	for p, a := range map[string]index.Attr{
		"/usr": {Mode: unix.S_IFDIR | 0o2775, UID: 10, GID: 4294967294,
			Mtime: time.Unix(-5, 7)},
		"/usr/share": {Mode: 0o1777, UID: 11, GID: 12, Mtime: time.Unix(1<<33, 999999999)},
		"/":          {Mode: 0o711, Mtime: time.Unix(1, 0)},
	} {
		nid := uint64(rootNid)
		if p != "/" {
			nid = LookupPath(t, x.Tree(), p)
		}
		attrs[nid] = a
		n := want.Dir(p)
		n.Mode, n.UID, n.GID, n.Mtime = unix.S_IFDIR|a.Mode&0o7777, a.UID, a.GID, a.Mtime
	}
	var b bytes.Buffer
	if err := index.Patch(&b, x, attrs); err != nil {
		t.Fatal(err)
	}
	// A patched index is the one that a scan of a tar with these directories had made.
	if !bytes.Equal(b.Bytes(), want.Write(t)) {
		t.Error("the patched file is not the one of a tree with these attributes")
	}
	if err := index.Check(context.Background(), OpenBytes(t, b.Bytes())); err != nil {
		t.Error(err)
	}
	if err := index.Patch(new(bytes.Buffer), x,
		map[uint64]index.Attr{LookupPath(t, x.Tree(),
			"/var/f"): {}}); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("patch of a file: %v", err)
	}
}
