package index_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// FuzzOpen reads all of an index file that came from anywhere: no panic, no
// endless loop, and what Check accepts is read without an error.
func FuzzOpen(f *testing.F) {
	for _, l := range Small() {
		f.Add(l.Write(f), false)
		f.Add(l.Write(f), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, forged bool) {
		if forged && len(b) >= index.HeaderSize {
			b = Resign(bytes.Clone(b)) // so that damage gets past the digests
		}
		x, err := index.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		checked := index.Check(context.Background(), x)
		if checked != nil && !errors.Is(checked, index.ErrCorrupt) {
			t.Fatalf("not ErrCorrupt: %v", checked)
		}
		if refused := ReadAll(x); checked == nil && refused > 0 {
			t.Fatalf("Check accepts it, %d reads fail", refused)
		}
		if checked != nil {
			return
		}
		root, err := x.Tree().Inode(rootNid)
		if err != nil {
			t.Fatal(err)
		}
		attr := index.Attr{Mode: 0o700, UID: root.UID + 1, Mtime: root.Mtime}
		var patched bytes.Buffer
		if err := index.Patch(&patched, x, map[uint64]index.Attr{rootNid: attr}); err != nil {
			t.Fatal(err)
		}
		if err := index.Check(context.Background(), OpenBytes(t, patched.Bytes())); err != nil {
			t.Fatal(err)
		}
	})
}
