package index_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
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
	grow := func(i int, n uint64) func([]byte) {
		return func(b []byte) {
			le.PutUint64(b[SectionAt+i*SectionSize+8:], n)
			for i++; i < sectionDigests; i++ {
				le.PutUint64(b[SectionAt+i*SectionSize:], uint64(end(b, i-1)))
			}
			le.PutUint64(b[24:], uint64(end(b, sectionImplicit)))
		}
	}
	for name, f := range map[string]func(b []byte){
		"2^60 spans":              grow(sectionSpans, spanSize<<53),
		"more spans than allowed": grow(sectionSpans, spanSize*(index.MaxSpans+1)),
		"2^50 implicit":           grow(sectionImplicit, 8<<50),
		"more implicit than tree": grow(sectionImplicit, 8<<20),
		"tree of 2 TiB":           grow(sectionTree, maxBlocks*erofs.BlockSize),
		"2^60 inodes":             func(b []byte) { le.PutUint64(b[superOffset+16:], 1<<60) },
		"device of 2^60":          func(b []byte) { le.PutUint64(b[184:], 1<<60) },
		"windows of 2^62":         func(b []byte) { le.PutUint64(b[192:], 1<<62) },
		"digests of 2^60": func(b []byte) {
			le.PutUint64(b[SectionAt+sectionDigests*SectionSize+8:], 1<<60)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(small)
			f(b)
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

// TestHostileSpans checks tables of spans that are wrong in one way each.
func TestHostileSpans(t *testing.T) {
	h := index.Header{LayerSize: 10 << 20, DeviceSize: 8192, WindowsSize: 1000}
	pair := func(change func(a, b *index.Span)) index.Spans {
		s := index.Spans{{Size: 4096, BlobSize: 4096, Codec: index.Deflate},
			{Device: 4096, Size: 4096, Blob: 4096, BlobSize: 4096, Codec: index.Deflate}}
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
		"window outside": pair(func(_,
			b *index.Span) {
			b.Window = index.Range{Off: 990, Size: 11}
		}),
		"window overflows": pair(func(_,
			b *index.Span) {
			b.Window = index.Range{Off: 1<<63 - 1, Size: 11}
		}),
		"window of 1 MiB": pair(func(_,
			b *index.Span) {
			b.Window = index.Range{Size: 1 << 20}
		}),
		"too many": make(index.Spans, index.MaxSpans+1),
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
	s := index.Span{Size: 1 << 20, BlobSize: int64(len(zeros)), Codec: index.Gzip,
		Digest: sha256.Sum256(make([]byte, 1<<20))}
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
