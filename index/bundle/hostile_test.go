package bundle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/index"
)

// allocated returns how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestBundleBomb opens bundles whose few bytes decompress to more than the table says, or whose
// table says more than is allowed.
func TestBundleBomb(t *testing.T) {
	le := binary.LittleEndian
	good := bundleOf(t, layerOf(file("a", "a")))
	// with replaces the frame, and makes the table say that the index file has size bytes.
	with := func(frame []byte, size int64) []byte {
		b := append(bytes.Clone(good.trees.Bytes()[:headSize+recordSize]), frame...)
		le.PutUint64(b[headSize+208:], uint64(len(frame)))
		if size > 0 {
			le.PutUint64(b[headSize+160:], uint64(size))
		}
		return b
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	zeros := enc.EncodeAll(make([]byte, 64<<20), nil)
	wide, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"64 MiB of zeros":        with(zeros, 0),
		"as many as it says":     with(zeros, 64<<20),
		"many frames":            with(bytes.Repeat(zeros, 16), 0),
		"window of 64 MiB":       with(wide.EncodeAll(make([]byte, 65<<20), nil), 65<<20),
		"size of 2^60":           with([]byte("\x28\xb5\x2f\xfd\xe4\x00\x00\x00\x00\x00\x00\x00\x10\x01\x00\x00"), 0),
		"skippable frames alone": with(bytes.Repeat([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"), 1<<16), 0),
	} {
		t.Run(name, func(t *testing.T) {
			x, err := Open(bytes.NewReader(b), int64(len(b)), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			l := x.Layers()[0]
			var written countWriter
			n := allocated(func() { err = x.Extract(l.Layer, &written) })
			if !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			if int64(written) > l.IndexSize+1 {
				t.Errorf("%d bytes written, the table says %d", written, l.IndexSize)
			}
			if n > 48<<20 {
				t.Errorf("%d bytes allocated", n)
			}
		})
	}

	layers := make([]*layer, 5)
	for i := range layers {
		layers[i] = layerOf(file("a", "a"))
	}
	b := bundleOf(t, layers...)
	one := int64(len(b.raw[0]))
	open := func(limit int64) error {
		_, err := Open(bytes.NewReader(b.trees.Bytes()), int64(b.trees.Len()), Limits{IndexSize: limit})
		return err
	}
	if err := open(5 * one); err != nil {
		t.Error(err)
	}
	if err := open(5*one - 1); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "Limits.IndexSize") {
		t.Errorf("five indexes that are too large together: %v", err)
	}
}

// countWriter counts what is written.
type countWriter int64

func (w *countWriter) Write(p []byte) (int, error) {
	*w += countWriter(len(p))
	return len(p), nil
}

// FuzzBundle opens and extracts a trees blob that came from anywhere.
func FuzzBundle(f *testing.F) {
	f.Add(bundleOf(f, smallLayers()...).trees.Bytes())
	f.Add(bundleOf(f, layerOf(file("a", "a"))).trees.Bytes())
	f.Add(bundleOf(f).trees.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := Open(bytes.NewReader(b), int64(len(b)), Limits{Layers: 20, IndexSize: 1 << 20})
		if err != nil {
			return
		}
		for _, l := range x.Layers() {
			var out bytes.Buffer
			if err := x.Extract(l.Layer, io.MultiWriter(&out)); err != nil {
				continue
			}
			if int64(out.Len()) != l.IndexSize {
				t.Fatalf("%d bytes, the table says %d", out.Len(), l.IndexSize)
			}
			if y, err := index.Open(bytes.NewReader(out.Bytes()), l.IndexSize); err == nil {
				readAll(y)
			}
		}
	})
}

// readAll reads all that an index has to say by every method, and returns how
// many of the calls were refused. It goes into each directory once.
func readAll(x *index.Layer) (refused int) {
	count := func(err error) {
		if err != nil {
			refused++
		}
	}
	tree := x.Tree()
	seen := map[uint64]bool{}
	var visit func(nid uint64, depth int)
	visit = func(nid uint64, depth int) {
		if seen[nid] || depth > 100 || len(seen) > 100000 {
			return
		}
		seen[nid] = true
		ino, err := tree.Inode(nid)
		count(err)
		names, err := tree.ListXattrs(nid)
		count(err)
		for _, name := range names {
			_, err := tree.Xattr(nid, name)
			count(err)
		}
		switch ino.Type() {
		case index.Symlink:
			_, err := tree.Readlink(nid)
			count(err)
		case index.Regular:
			count(tree.Extents(ino, 0, 1<<20, func(index.Extent) error { return nil }))
			count(tree.Extents(ino, max(ino.Size-1, 0), 10, func(index.Extent) error { return nil }))
		case index.Directory:
			var children []index.Dirent
			count(tree.ReadDir(nid, 0, func(e index.Dirent) bool { children = append(children, e); return len(children) < 10000 }))
			for _, e := range children {
				found, err := tree.Lookup(nid, e.Name)
				if err != nil || found != e.Nid {
					refused++
				}
				visit(e.Nid, depth+1)
			}
			count(tree.Paths([]uint64{nid}, func(uint64, string) error { return nil }))
		}
	}
	visit(tree.Root(), 0)
	_, err := x.Spans()
	count(err)
	implicit, err := x.Implicit()
	count(err)
	count(tree.Paths(implicit, func(uint64, string) error { return nil }))
	return refused
}
