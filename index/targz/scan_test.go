package targz

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// content is n bytes that compress about as files do.
func content(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 500)
	for i := range words {
		b := make([]byte, 2+rnd.IntN(9))
		for j := range b {
			b[j] = byte('a' + rnd.IntN(26))
		}
		words[i] = string(b)
	}
	out := make([]byte, 0, n+16)
	for len(out) < n {
		if rnd.IntN(20) == 0 {
			out = binary.LittleEndian.AppendUint64(out, rnd.Uint64())
			continue
		}
		out = append(out, words[int(rnd.ExpFloat64()*60)%len(words)]...)
		out = append(out, ' ')
	}
	return out[:n]
}

// tarOf is a tar of files of these sizes.
func tarOf(t testing.TB, sizes ...int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, n := range sizes {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("f%d", i), Mode: 0o644,
			Size: int64(n)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content(uint64(i), n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// zip makes a gzip member of data.
func zip(t testing.TB, level int, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name = "a name"
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// zipEach makes a member of each n bytes.
func zipEach(t testing.TB, n int, data []byte) (out []byte) {
	t.Helper()
	for len(data) > 0 {
		k := min(n, len(data))
		out = append(out, zip(t, 6, data[:k])...)
		data = data[k:]
	}
	return out
}

// zipFlushed flushes after each n bytes: an empty stored block there.
func zipFlushed(t testing.TB, n int, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := kgzip.NewWriter(&b)
	for len(data) > 0 {
		k := min(n, len(data))
		if _, err := w.Write(data[:k]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		data = data[k:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// verify checks all that a draft says of a blob that holds device, and returns the
// spans' windows together.
func verify(t testing.TB, d *index.Draft, blob, device, gotDevice, windows []byte) {
	t.Helper()
	want := index.Header{
		Layer:       digest.FromBytes(blob),
		LayerSize:   int64(len(blob)),
		DiffID:      digest.FromBytes(device),
		DeviceSize:  int64(len(device)),
		WindowsSize: int64(len(windows)),
	}
	if d.Header != want {
		t.Fatalf("header %+v\nwant   %+v", d.Header, want)
	}
	if !bytes.Equal(gotDevice, device) {
		t.Fatalf("device of %d bytes differs (%d)", len(gotDevice), len(device))
	}
	at, blobAt, windowAt := int64(0), int64(0), int64(0)
	for i := range d.Spans {
		s := &d.Spans[i]
		if s.Device != at || s.Size <= 0 {
			t.Fatalf("span %d of %d at %d, want %d", i, s.Size, s.Device, at)
		}
		if s.Blob != blobAt && (s.Blob != blobAt-1 || s.Bit == 0) {
			t.Fatalf("span %d at %d (bit %d) of the blob, the last one ended at %d", i, s.Blob,
				s.Bit, blobAt)
		}
		if s.Window.Size > 0 && s.Window.Off != windowAt {
			t.Fatalf("span %d has its window at %d, want %d", i, s.Window.Off, windowAt)
		}
		at += s.Size
		blobAt = s.Blob + s.BlobSize
		windowAt += s.Window.Size
		if s.Digest != sha256.Sum256(device[s.Device:at]) {
			t.Fatalf("span %d: digest", i)
		}
		dst := make([]byte, s.Size)
		if err := s.Decode(dst, blob[s.Blob:blobAt],
			windows[s.Window.Off:][:s.Window.Size]); err != nil {
			t.Fatalf("span %d: %v", i, err)
		}
	}
	if at != int64(len(device)) || windowAt != int64(len(windows)) || len(d.Spans) > 0 &&
		blobAt != int64(len(blob)) {
		t.Fatalf("spans end at %d, %d in the blob, %d in the windows; want %d, %d, %d",
			at, blobAt, windowAt, len(device), len(blob), len(windows))
	}
}

// checks is what a test wants of the spans.
type checks []func(t *testing.T, spans []index.Span)

func (c checks) run(t *testing.T, spans []index.Span) {
	t.Helper()
	for _, check := range c {
		check(t, spans)
	}
}

func hasSpans(low, high int) func(*testing.T, []index.Span) {
	return func(t *testing.T, spans []index.Span) {
		t.Helper()
		if len(spans) < low || len(spans) > high {
			t.Errorf("%d spans, want %d to %d", len(spans), low, high)
		}
	}
}

// hasCodecs wants the first span to have one codec and the others another.
func hasCodecs(first, others index.Codec) func(*testing.T, []index.Span) {
	return func(t *testing.T, spans []index.Span) {
		t.Helper()
		for i, s := range spans {
			if want := [2]index.Codec{first, others}[min(i, 1)]; s.Codec != want {
				t.Errorf("span %d has codec %d, want %d", i, s.Codec, want)
			}
		}
	}
}

// hasSizes wants all spans but the last one in a range.
func hasSizes(low, high int64) func(*testing.T, []index.Span) {
	return func(t *testing.T, spans []index.Span) {
		t.Helper()
		for i, s := range spans[:max(0, len(spans)-1)] {
			if s.Size < low || s.Size > high {
				t.Errorf("span %d has %d bytes, want %d to %d", i, s.Size, low, high)
			}
		}
	}
}

func TestScan(t *testing.T) {
	device := tarOf(t, 900_000, 0, 300, 500_000, 1_500_000)
	// What a tar need not be: behind the end marker there is more, and it is no
	// multiple of 512.
	odd := append(tarOf(t, 600_000), content(9, 300_001)...)
	zeros := tarOf(t)
	zeros = append(zeros, make([]byte, 9<<20)...)
	buffers := tarOf(t, 2*bufferSize-512-1024)
	const size = 256 << 10
	tests := []struct {
		name   string
		device []byte
		blob   []byte
		want   checks
	}{
		{"plain", device, device, checks{hasSpans(12, 12), hasCodecs(index.Stored, index.Stored),
			hasSizes(size, size)}},
		{"plain, odd", odd, odd, checks{hasSpans(4, 4)}},
		{"plain, empty blob", nil, nil, checks{hasSpans(0, 0)}},
		{"plain, two buffers", buffers, buffers, checks{hasSpans(2, 2)}},
		{"two buffers", buffers, zip(t, 6, buffers), checks{hasSpans(2, 3)}},
		{"level 6", device, zip(t, 6, device),
			checks{hasSpans(9, 16), hasCodecs(index.Gzip, index.Deflate),
				hasSizes(size*3/4, size*5/4)}},
		{"level 1", device, zip(t, 1, device),
			checks{hasSpans(9, 16), hasCodecs(index.Gzip, index.Deflate)}},
		{"Huffman only", device, zip(t, gzip.HuffmanOnly, device),
			checks{hasSpans(9, 16), hasCodecs(index.Gzip, index.Deflate)}},
		{"stored blocks", device, zip(t, 0, device),
			checks{hasSpans(9, 16), hasCodecs(index.Gzip, index.Deflate)}},
		{"odd", odd, zip(t, 6, odd), checks{hasSpans(3, 5)}},
		{"long blocks", zeros, zip(t, 9, zeros), checks{hasSpans(2, 5)}},
		{"empty member alone", nil, zip(t, 6, nil), checks{hasSpans(0, 0)}},
		{"small", tarOf(t, 10), zip(t, 6, tarOf(t, 10)), checks{hasSpans(1, 1)}},
		{"members of 64 KiB", device, zipEach(t, 64<<10, device),
			checks{hasSpans(12, 12), hasCodecs(index.Gzip, index.Gzip), hasSizes(size, size)}},
		{"members of 2.5 KiB", device, zipEach(t, 2500, device),
			checks{hasSpans(11, 13), hasCodecs(index.Gzip, index.Gzip)}},
		{"members of 300 KiB", device, zipEach(t, 300<<10, device),
			checks{hasCodecs(index.Gzip, index.Gzip), hasSizes(300<<10, 300<<10)}},
		{"members of 1 MiB", device, zipEach(t, 1<<20, device), checks{hasSpans(9, 16)}},
		{"flushed each 100 bytes", device, zipFlushed(t, 100, device),
			checks{hasSpans(9, 16), hasSizes(size*3/4, size*5/4)}},
		{
			"empty members and padding", device,
			bytes.Join([][]byte{zip(t, 6, nil), zip(t, 6, device[:1<<20]), zip(t, 6, nil),
				zip(t, 0, nil), zip(t, 6, device[1<<20:]), zip(t, 6, nil), make([]byte,
					200_000)}, nil),
			checks{hasSpans(9, 16)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var dev, windows bytes.Buffer
			d, err := Scan(t.Context(), bytes.NewReader(tt.blob),
				Options{SpanSize: size, Device: &dev, Windows: &windows})
			if err != nil {
				t.Fatal(err)
			}
			verify(t, d, tt.blob, tt.device, dev.Bytes(), windows.Bytes())
			tt.want.run(t, d.Spans)
			if d.Root == nil {
				t.Fatal("no tree")
			}

			// In whatever pieces the blob comes, the index is the same.
			again, err := Scan(t.Context(), iotest.HalfReader(bytes.NewReader(tt.blob)),
				Options{SpanSize: size})
			if err != nil {
				t.Fatal(err)
			}
			if again.Header != d.Header || fmt.Sprint(again.Spans) != fmt.Sprint(d.Spans) {
				t.Error("a second scan differs")
			}
		})
	}
}

func TestScanTree(t *testing.T) {
	device := tarOf(t, 5000, 0, 700_000)
	d, err := Scan(t.Context(), bytes.NewReader(zip(t, 6, device)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{5000, 0, 700_000} {
		f := d.Root.Children[fmt.Sprintf("f%d", i)]
		if f == nil || f.Size != int64(n) {
			t.Fatalf("file %d is %+v", i, f)
		}
		for _, e := range f.Extents {
			if e.Data == nil && !bytes.Equal(device[e.Device:][:e.Size],
				content(uint64(i), n)[e.File:][:e.Size]) {
				t.Errorf("file %d: extent %+v holds something else", i, e)
			}
		}
	}
}

func TestScanErrors(t *testing.T) {
	device := tarOf(t, 900_000)
	good := zip(t, 6, device)
	flip := func(i int) []byte {
		b := bytes.Clone(good)
		b[(i+len(b))%len(b)] ^= 0x55
		return b
	}
	giant := func() []byte { // one fixed block of 20 MB
		out := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
		// 00000000 as a literal, then matches of 258 at distance 1: 8+5 bits.
		hold, n := uint64(1|1<<1), 3
		put := func(v uint64, bits int) {
			for hold, n = hold|v<<n, n+bits; n >= 8; n -= 8 {
				out = append(out, byte(hold))
				hold >>= 8
			}
		}
		put(0x0c, 8) // code 00110000, highest bit first
		for range 80_000 {
			put(0xa3, 8) // 11000101
			put(0, 5)
		}
		return append(out, make([]byte, 100)...)
	}()
	tests := []struct {
		name string
		blob []byte
		o    Options
		is   error
		text string
	}{
		{"truncated in the data", good[:len(good)/2], Options{}, ErrCorrupt, "ends at"},
		{"truncated in the trailer", good[:len(good)-3], Options{}, ErrCorrupt, "ends at"},
		{"truncated in the header", good[:12], Options{}, ErrCorrupt, "ends at"},
		{"truncated in a second header", append(bytes.Clone(good), 0x1f, 0x8b), Options{},
			ErrCorrupt, "ends at"},
		{"wrong checksum", flip(-5), Options{}, ErrCorrupt, "checksum"},
		{"wrong length", flip(-1), Options{}, ErrCorrupt, "checksum"},
		{"garbage behind", append(bytes.Clone(good), "garbage"...), Options{}, ErrCorrupt,
			"header"},
		{"garbage behind padding", append(append(bytes.Clone(good), make([]byte, 300_000)...), 'x'),
			Options{}, ErrCorrupt, "garbage"},
		{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0}, Options{}, ErrNotIndexable, "zstd"},
		{"skippable zstd frame", []byte{0x5a, 0x2a, 0x4d, 0x18, 0, 0}, Options{}, ErrNotIndexable,
			"zstd"},
		{"no tar", zip(t, 6, []byte(strings.Repeat("no tar ", 500))), Options{}, tar.ErrHeader,
			"tar"},
		{"tar cut off", zip(t, 6, device[:500_000]), Options{}, io.ErrUnexpectedEOF, "tar"},
		{"one giant block", giant, Options{}, ErrNotIndexable, "16777216"},
		{"span size", good, Options{SpanSize: 1}, nil, "span size"},
	}
	for i := range 20 {
		tests = append(tests, struct {
			name string
			blob []byte
			o    Options
			is   error
			text string
		}{name: fmt.Sprintf("flipped %d", i), blob: flip(1000 + i*len(good)/21), is: ErrCorrupt})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Scan(t.Context(), bytes.NewReader(tt.blob), tt.o)
			if err == nil {
				t.Fatal("no error")
			}
			// Broken data may break the tar before the checksum is seen.
			if strings.HasPrefix(tt.name, "flipped") {
				return
			}
			if tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %q (wanted %v, %q)", err, tt.is, tt.text)
			}
		})
	}
}

// failing is a writer or reader that fails after some bytes.
type failing struct{ left int }

var errInjected = errors.New("injected")

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errInjected
	}
	return len(p), nil
}

func TestScanFaults(t *testing.T) {
	blob := zip(t, 6, tarOf(t, 5_000_000))
	for name, o := range map[string]struct {
		blob io.Reader
		o    Options
	}{
		"reader": {io.MultiReader(bytes.NewReader(blob[:len(blob)/2]),
			iotest.ErrReader(errInjected)), Options{}},
		"reader that ends early": {io.MultiReader(bytes.NewReader(blob[:len(blob)/2]),
			iotest.ErrReader(fmt.Errorf("%w: %w", errInjected, io.ErrUnexpectedEOF))), Options{}},
		"first read": {iotest.ErrReader(errInjected), Options{}},
		"device":     {bytes.NewReader(blob), Options{Device: &failing{3_000_000}}},
		"windows":    {bytes.NewReader(blob), Options{Windows: &failing{50}}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Scan(t.Context(), o.blob, o.o); !errors.Is(err, errInjected) {
				t.Fatalf("error %v", err)
			}
		})
	}
	t.Run("tree", func(t *testing.T) {
		_, err := scan(t.Context(), bytes.NewReader(blob), Options{},
			func(r io.Reader) (*erofs.Node, error) {
				_, err := io.CopyN(io.Discard, r, 2_000_000)
				return nil, errors.Join(err, errInjected)
			})
		if !errors.Is(err, errInjected) {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := scan(ctx, bytes.NewReader(blob), Options{},
			func(r io.Reader) (*erofs.Node, error) {
				cancel()
				_, err := io.Copy(io.Discard, r)
				return nil, err
			})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
	})
}

// FuzzScan: whatever the blob, Scan ends, and what it accepts compress/gzip accepts
// with the same content, and every span decodes.
func FuzzScan(f *testing.F) {
	device := tarOf(f, 3000, 200_000)
	f.Add(zip(f, 6, device))
	f.Add(zip(f, 1, device[:70_000]))
	f.Add(zipEach(f, 90_000, device))
	f.Add(append(zipFlushed(f, 5000, device), 0, 0, 0))
	f.Add(device[:5000])
	f.Fuzz(func(t *testing.T, blob []byte) {
		var dev, windows bytes.Buffer
		d, err := scan(t.Context(), bytes.NewReader(blob),
			Options{SpanSize: MinSpanSize, Device: &dev, Windows: &windows},
			func(io.Reader) (*erofs.Node, error) { return new(erofs.Node), nil })
		if err != nil {
			return
		}
		device := blob
		if bytes.HasPrefix(blob, []byte{0x1f, 0x8b, 8}) {
			z, err := gzip.NewReader(bytes.NewReader(bytes.TrimRight(blob, "\x00")))
			if err == nil {
				device, err = io.ReadAll(z)
			}
			if err != nil {
				// Trimmed zeros may belong to the last trailer.
				z, err = gzip.NewReader(bytes.NewReader(blob))
				if err != nil {
					t.Fatal(err)
				}
				device, _ = io.ReadAll(z)
			}
		}
		verify(t, d, blob, device, dev.Bytes(), windows.Bytes())
	})
}
