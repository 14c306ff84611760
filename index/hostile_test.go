package index_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// endless is a file of any size that holds head and zeros, and costs nothing.
type endless struct{ head []byte }

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(e.head)) {
		copy(p, e.head[off:])
	}
	return len(p), nil
}

// TestHugeClaims opens small files that claim to hold far more than they do: nothing is allocated
// for it.
func TestHugeClaims(t *testing.T) {
	le := binary.LittleEndian
	small := LayerOf(File("a", "a"), Implicit("d")).Write(t)
	end := func(b []byte, i int) int64 {
		at := b[SectionAt+i*SectionSize:]
		return int64(le.Uint64(at) + le.Uint64(at[8:]))
	}
	// grow makes section i claim n bytes, and what is behind it follow.
	grow := func(i int, n uint64) forgery {
		return func(b []byte, _ func(string) int64) {
			le.PutUint64(b[SectionAt+i*SectionSize+8:], n)
			for i++; i < sectionDigests; i++ {
				le.PutUint64(b[SectionAt+i*SectionSize:], uint64(end(b, i-1)))
			}
			le.PutUint64(b[24:], uint64(end(b, sectionImplicit)))
		}
	}
	for name, f := range map[string]forgery{
		"2^60 spans":              grow(sectionSpans, spanSize<<53),
		"more spans than allowed": grow(sectionSpans, spanSize*(index.MaxSpans+1)),
		"2^50 implicit":           grow(sectionImplicit, 8<<50),
		"more implicit than tree": grow(sectionImplicit, 8<<20),
		"tree of 2 TiB":           grow(sectionTree, maxBlocks*index.BlockSize),
		"2^60 inodes":             func(b []byte, _ func(string) int64) { le.PutUint64(b[superOffset+16:], 1<<60) },
		"device of 2^60":          func(b []byte, _ func(string) int64) { le.PutUint64(b[184:], 1<<60) },
		"windows of 2^62":         func(b []byte, _ func(string) int64) { le.PutUint64(b[192:], 1<<62) },
		"digests of 2^60": func(b []byte, _ func(string) int64) {
			le.PutUint64(b[SectionAt+sectionDigests*SectionSize+8:], 1<<60)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(small)
			f(b, nil)
			Resign(b)
			size := int64(le.Uint64(b[24:]))
			var err error
			n := Allocated(func() {
				var x *index.Layer
				if x, err = index.Open(endless{b}, size); err == nil {
					err = index.Check(t.Context(), x)
				}
			})
			if !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			if n > 4<<20 {
				t.Errorf("%d bytes allocated", n)
			}
		})
	}
}

// TestHostileTrees checks trees that are legal but for their size or their names.
func TestHostileTrees(t *testing.T) {
	for name, l := range map[string]*Layer{
		"deep": LayerOf(Dir(strings.Repeat("d/", 3000))),
		"long": LayerOf(Dir(strings.Repeat(strings.Repeat("l", 200)+"/", 30))),
	} {
		x := l.Open(t)
		if err := index.Check(t.Context(), x); !errors.Is(err, index.ErrCorrupt) || !strings.Contains(err.Error(), "path") {
			t.Errorf("%s: error %v", name, err)
		}
		deepest := func() error {
			nids, err := x.Implicit()
			if err != nil {
				return err
			}
			return x.Tree().Paths(nids, func(uint64, string) error { return nil })
		}
		if err := deepest(); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%s: paths: %v", name, err)
		}
	}
	for _, name := range []string{"a/b", "/", "a\x00b", "", "..", ".", strings.Repeat("n", 256)} {
		l := LayerOf(Dir("d"))
		l.Draft.Root.Children["d"].Children[name] = &index.Node{Mode: unix.S_IFREG}
		if _, err := index.Write(io.Discard, &l.Draft); err == nil {
			t.Errorf("a file of name %q is written", name)
		}
	}
	if err := index.Check(t.Context(), LayerOf(Dir(strings.Repeat("d/", 2047))).Open(t)); err != nil {
		t.Errorf("the deepest path: %v", err)
	}
}

// TestManyImplicit finds the paths of many directories of one directory in time that grows with
// their number, not with its square.
func TestManyImplicit(t *testing.T) {
	const n = 50_000
	x := LayerOf(Entries(n, func(i int) Entry { return Implicit(fmt.Sprint("d/", i)) })).Open(t)
	nids, err := x.Implicit()
	if err != nil {
		t.Fatal(err)
	}
	start, found := time.Now(), 0
	if err := x.Tree().Paths(nids, func(uint64, string) error { found++; return nil }); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 5*time.Second || found != n+1 {
		t.Errorf("%d paths in %v", found, d)
	}
}

// TestHostileSpans checks tables of spans that are wrong in one way each.
func TestHostileSpans(t *testing.T) {
	h := index.Header{LayerSize: 10 << 20, DeviceSize: 8192, WindowsSize: 1000}
	pair := func(change func(a, b *index.Span)) index.Spans {
		s := index.Spans{{Size: 4096, BlobSize: 4096, Codec: index.Deflate}, {Device: 4096, Size: 4096, Blob: 4096, BlobSize: 4096, Codec: index.Deflate}}
		change(&s[0], &s[1])
		return s
	}
	for name, s := range map[string]index.Spans{
		"overlap in the device": pair(func(_, b *index.Span) { b.Device = 4000 }),
		"overlap in the blob":   pair(func(_, b *index.Span) { b.Blob = 4000 }),
		"gap in the device":     pair(func(_, b *index.Span) { b.Device = 5000 }),
		"backwards":             pair(func(a, b *index.Span) { *a, *b = *b, *a }),
		"behind the blob":       pair(func(_, b *index.Span) { b.Blob = 10<<20 - 100 }),
		"negative blob offset":  pair(func(a, _ *index.Span) { a.Blob = -1 }),
		"sum overflows":         pair(func(_, b *index.Span) { b.Blob = 1<<63 - 1 }),
		"behind the device":     pair(func(_, b *index.Span) { b.Size = 8192 }),
		"of nothing":            pair(func(_, b *index.Span) { b.BlobSize = 0 }),
		"of 1 GiB":              pair(func(_, b *index.Span) { b.Size = 1 << 30 }),
		"window outside":        pair(func(_, b *index.Span) { b.Window = index.Range{Off: 990, Size: 11} }),
		"window overflows":      pair(func(_, b *index.Span) { b.Window = index.Range{Off: 1<<63 - 1, Size: 11} }),
		"window of 1 MiB":       pair(func(_, b *index.Span) { b.Window = index.Range{Size: 1 << 20} }),
		"too many":              make(index.Spans, index.MaxSpans+1),
	} {
		if err := checkSpans(s, h); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := checkSpans(pair(func(_, _ *index.Span) {}), h); err != nil {
		t.Error(err)
	}
}

// TestDeflateBomb decodes a span that would give far more than it is to: it stops where the slice
// ends.
func TestDeflateBomb(t *testing.T) {
	zeros := gzipOf(t, make([]byte, 64<<20))
	s := index.Span{Size: 1 << 20, BlobSize: int64(len(zeros)), Codec: index.Gzip, Digest: sha256.Sum256(make([]byte, 1<<20))}
	dst := make([]byte, s.Size)
	var err error
	n := Allocated(func() { err = s.Decode(dst, zeros, nil) })
	if err != nil || n > 1<<20 {
		t.Errorf("%v, %d bytes allocated", err, n)
	}
	// Members without content: they take time in proportion to their bytes, and end.
	empty := bytes.Repeat(gzipOf(t, nil), 100_000)
	s.BlobSize = int64(len(empty))
	start := time.Now()
	if err := s.Decode(dst, empty, nil); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("empty members: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("empty members took %v", d)
	}
}

func gzipOf(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(content)
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
