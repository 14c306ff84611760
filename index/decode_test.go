package index_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/targz"
)

// gzipLayer is a layer of one file of n bytes in one or more gzip members of up
// to member bytes, with what a scan of it gives.
type gzipLayer struct {
	blob, device, windows []byte
	spans                 []index.Span
}

func newGzipLayer(t testing.TB, n, member int) *gzipLayer {
	t.Helper()
	l := &gzipLayer{device: make([]byte, 0, n+2048)}
	// An empty tar, and behind its end marker whatever we want.
	l.device = append(l.device, make([]byte, 1024)...)
	rnd := rand.New(rand.NewPCG(5, uint64(n)))
	for len(l.device) < n {
		if k := rnd.IntN(len(l.device)); rnd.IntN(3) > 0 {
			k = max(k, len(l.device)-30_000)
			l.device = append(l.device, l.device[k:min(len(l.device), k+rnd.IntN(40))]...)
		} else {
			l.device = append(l.device, byte(rnd.Uint32()), byte(rnd.Uint32()%16))
		}
	}
	var blob, windows bytes.Buffer
	for rest := l.device; len(rest) > 0; {
		z := gzip.NewWriter(&blob)
		k := min(member, len(rest))
		if _, err := z.Write(rest[:k]); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		rest = rest[k:]
	}
	l.blob = blob.Bytes()
	d, err := targz.Scan(context.Background(), bytes.NewReader(l.blob),
		targz.Options{SpanSize: 64 << 10, Windows: &windows})
	if err != nil {
		t.Fatal(err)
	}
	l.spans, l.windows = d.Spans, windows.Bytes()
	return l
}

// parts are the blob and the window of a span.
func (l *gzipLayer) parts(s *index.Span) (blob, window []byte) {
	return l.blob[s.Blob:][:s.BlobSize], l.windows[s.Window.Off:][:s.Window.Size]
}

func TestSpanDecode(t *testing.T) {
	for _, member := range []int{1 << 30, 300_000, 20_000} {
		l := newGzipLayer(t, 700_000, member)
		windows := 0
		for i := range l.spans {
			s := &l.spans[i]
			blob, window := l.parts(s)
			// Slices at the ends of their memory, and guards behind dst.
			mem := bytes.Repeat([]byte{0xaa}, int(s.Size)+300)
			if err := s.Decode(mem[:s.Size], bytes.Clone(blob), window); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(mem[:s.Size], l.device[s.Device:][:s.Size]) {
				t.Fatalf("span %d differs", i)
			}
			if !bytes.Equal(mem[s.Size:], bytes.Repeat([]byte{0xaa}, 300)) {
				t.Fatalf("span %d: wrote behind dst", i)
			}
			windows += min(1, len(window))
		}
		if member == 1<<30 && windows == 0 {
			t.Error("no span has a window: nothing is tested")
		}
	}
}

// zstdSpan returns a span of data as zstd frames of so many bytes of it, the last of fewer.
func zstdSpan(t testing.TB, data []byte, frame int) (*index.Span, []byte) {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var blob []byte
	for rest := data; len(rest) > 0; {
		n := min(frame, len(rest))
		blob = z.EncodeAll(rest[:n], blob)
		rest = rest[n:]
	}
	return &index.Span{Size: int64(len(data)), BlobSize: int64(len(blob)), Codec: index.Zstd,
		Digest: sha256.Sum256(data)}, blob
}

func TestSpanDecodeZstd(t *testing.T) {
	l := newGzipLayer(t, 700_000, 1<<30)
	noise := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	for name, data := range map[string][]byte{"text": l.device, "zeros": make([]byte, 1<<20),
		"noise": noise, "a byte": {7}} {
		for _, frame := range []int{len(data), (len(data) + 3) / 4} {
			s, blob := zstdSpan(t, data, frame)
			mem := bytes.Repeat([]byte{0xaa}, len(data)+300)
			if err := s.Decode(mem[:s.Size], blob, nil); err != nil ||
				!bytes.Equal(mem[:s.Size], data) {
				t.Fatalf("%s, in frames of %d: %v", name, frame, err)
			}
			if !bytes.Equal(mem[s.Size:], bytes.Repeat([]byte{0xaa}, 300)) {
				t.Fatalf("%s, in frames of %d: wrote behind dst", name, frame)
			}
			for what, change := range map[string]func(*index.Span){
				"shorter":        func(s *index.Span) { s.Size-- },
				"longer":         func(s *index.Span) { s.Size++ },
				"another digest": func(s *index.Span) { s.Digest[1]++ },
			} {
				o := *s
				change(&o)
				if err := o.Decode(mem[:o.Size], blob, nil); !errors.Is(err, index.ErrCorrupt) {
					t.Errorf("%s, %s: %v", name, what, err)
				}
			}
			s.BlobSize--
			if err := s.Decode(mem[:s.Size], blob[:s.BlobSize], nil); !errors.Is(err,
				index.ErrCorrupt) {
				t.Errorf("%s, cut: %v", name, err)
			}
		}
	}
}

func TestSpanDecodeCorrupt(t *testing.T) {
	l := newGzipLayer(t, 700_000, 300_000)
	var first, inner *index.Span
	for i := range l.spans {
		switch s := &l.spans[i]; {
		case s.Codec == index.Gzip && first == nil:
			first = s
		case s.Window.Size > 0 && inner == nil:
			inner = s
		}
	}
	stored := &index.Span{Size: 3, BlobSize: 3, Codec: index.Stored,
		Digest: sha256.Sum256([]byte("abc"))}
	tests := []struct {
		name   string
		span   *index.Span
		damage func(s *index.Span, blob, window []byte) (b, w []byte)
		ok     bool
	}{
		{"gzip as it is", first, nil, true},
		{"deflate as it is", inner, nil, true},
		{"digest", inner, func(s *index.Span, b, w []byte) ([]byte,
			[]byte) {
			s.Digest[0]++
			return b, w
		}, false},
		{"window's digest stated", inner,
			func(s *index.Span, b, w []byte) ([]byte,
				[]byte) {
				s.WindowDigest = sha256.Sum256(w)
				return b, w
			}, true},
		{"window's digest", inner, func(s *index.Span, b, w []byte) ([]byte,
			[]byte) {
			s.WindowDigest[3]++
			return b, w
		}, false},
		{"another window", inner, func(s *index.Span, b, _ []byte) ([]byte, []byte) {
			w := []byte{0, 1, 0, 0, 'x'}
			s.Window.Size = int64(len(w))
			return b, w
		}, false},
		{"no window encoding", inner, func(s *index.Span, b, _ []byte) ([]byte, []byte) {
			w := []byte{9, 9}
			s.Window.Size = int64(len(w))
			return b, w
		}, false},
		{"window left out", inner, func(s *index.Span, b, _ []byte) ([]byte,
			[]byte) {
			s.Window.Size = 0
			return b, nil
		}, false},
		{"bit", inner, func(s *index.Span, b, w []byte) ([]byte,
			[]byte) {
			s.Bit = (s.Bit + 1) % 8
			return b, w
		}, false},
		{"no bit", inner, func(s *index.Span, b, w []byte) ([]byte, []byte) {
			s.Bit = 8
			return b,
				w
		}, false},
		{"codec", inner, func(s *index.Span, b, w []byte) ([]byte, []byte) {
			s.Codec = 77
			return b,
				w
		}, false},
		{"gzip for deflate", inner,
			func(s *index.Span, b, w []byte) ([]byte, []byte) {
				s.Codec = index.Gzip
				return b,
					w
			}, false},
		{"deflate for gzip", first,
			func(s *index.Span, b, w []byte) ([]byte, []byte) {
				s.Codec = index.Deflate
				return b,
					w
			}, false},
		{"blob flipped", first, func(_ *index.Span, b, w []byte) ([]byte,
			[]byte) {
			b[len(b)/2] ^= 4
			return b, w
		}, false},
		{"blob cut", first, func(s *index.Span, b, w []byte) ([]byte,
			[]byte) {
			s.BlobSize /= 2
			return b[:s.BlobSize], w
		}, false},
		{"blob empty", inner, func(s *index.Span, _, w []byte) ([]byte,
			[]byte) {
			s.BlobSize = 0
			return nil, w
		}, false},
		{"stored", stored, func(_ *index.Span, _, _ []byte) ([]byte, []byte) {
			return []byte("abc"),
				nil
		}, true},
		{"stored, differs", stored,
			func(_ *index.Span, _, _ []byte) ([]byte, []byte) { return []byte("abd"), nil }, false},
		{"stored, too short", stored,
			func(s *index.Span, _, _ []byte) ([]byte, []byte) {
				s.BlobSize = 2
				return []byte("ab"),
					nil
			}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := *tt.span
			var blob, window []byte
			if s.Codec != index.Stored {
				blob, window = l.parts(&s)
				blob = bytes.Clone(blob)
			}
			if tt.damage != nil {
				blob, window = tt.damage(&s, blob, window)
			}
			err := s.Decode(make([]byte, s.Size), blob, window)
			if tt.ok && err != nil || !tt.ok && !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
		})
	}
	s := *first
	blob, window := l.parts(&s)
	if err := s.Decode(make([]byte, s.Size+1), blob, window); err == nil ||
		errors.Is(err, index.ErrCorrupt) {
		t.Errorf("wrong length of dst: error %v", err)
	}
}

func BenchmarkSpanDecode(b *testing.B) {
	l := newGzipLayer(b, 4<<20, 1<<30)
	s := &l.spans[len(l.spans)/2]
	blob, window := l.parts(s)
	dst := make([]byte, s.Size)
	b.SetBytes(s.Size)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Decode(dst, blob, window); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzSpanDecode: a span of anything never panics nor writes elsewhere, and what
// it makes of a gzip stream from its start is what compress/gzip makes of it.
func FuzzSpanDecode(f *testing.F) {
	for _, member := range []int{1 << 30, 3000} {
		l := newGzipLayer(f, 9000, member)
		f.Add(l.blob, []byte(nil), uint8(index.Gzip), uint8(0), uint16(len(l.device)))
	}
	l := newGzipLayer(f, 400_000, 1<<30)
	s := l.spans[1]
	blob, window := l.parts(&s)
	f.Add(blob, window, uint8(s.Codec), s.Bit, uint16(9999))
	f.Add([]byte("stored"), []byte(nil), uint8(index.Stored), uint8(0), uint16(6))
	_, packed := zstdSpan(f, l.device[:9000], 4000)
	f.Add(packed, []byte(nil), uint8(index.Zstd), uint8(0), uint16(9000))
	f.Fuzz(func(t *testing.T, blob, window []byte, codec, bit uint8, size uint16) {
		s := &index.Span{
			Size: int64(size), BlobSize: int64(len(blob)), Codec: index.Codec(codec), Bit: bit,
			Window: index.Range{Size: int64(len(window))}, WindowDigest: sha256.Sum256(window),
		}
		want := make([]byte, size)
		wantErr := errors.New("not compared")
		if s.Codec == index.Gzip {
			z, err := gzip.NewReader(bytes.NewReader(blob))
			if err == nil {
				_, err = io.ReadFull(z, want)
			}
			wantErr = err
			s.Digest = sha256.Sum256(want)
		}
		mem := bytes.Repeat([]byte{0xaa}, int(size)+300)
		err := s.Decode(mem[:size], blob, window)
		if err != nil && !errors.Is(err, index.ErrCorrupt) {
			t.Fatalf("error of another kind: %v", err)
		}
		if wantErr == nil && err != nil {
			t.Fatalf("compress/gzip decodes it: %v", err)
		}
		if !bytes.Equal(mem[size:], bytes.Repeat([]byte{0xaa}, 300)) {
			t.Fatal("wrote behind dst")
		}
	})
}
