package targz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
)

// zstdOf compresses each part as a frame of its own.
func zstdOf(t testing.TB, window int, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		z, err := zstd.NewWriter(&b, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// skippable is a frame that zstd skips, as zstd:chunked and pzstd have them.
func skippable(n int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x184d2a50)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	return append(b, content(7, n)...)
}

// oneBlock is data in one gzip member of one deflate block, of literals.
func oneBlock(data []byte) []byte {
	out := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	hold, n := uint64(1|1<<1), 3
	put := func(code uint64, bits int) { // the highest bit first
		for i := bits - 1; i >= 0; i-- {
			hold |= (code >> i & 1) << n
			if n++; n == 8 {
				out = append(out, byte(hold))
				hold, n = 0, 0
			}
		}
	}
	for _, c := range data {
		if c < 144 {
			put(0x30+uint64(c), 8)
		} else {
			put(0x190+uint64(c)-144, 9)
		}
	}
	put(0, 7)
	put(0, 7) // to the end of the byte
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(data))
	return binary.LittleEndian.AppendUint32(out, uint32(len(data)))
}

// unpack returns the first n bytes of what Unpack returns.
func unpack(t testing.TB, blob []byte, n int64) []byte {
	t.Helper()
	r, err := Unpack(bytes.NewReader(blob), func(int64) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// verifyWhole checks what a scan made of a layer that is fetched whole.
func verifyWhole(t testing.TB, d *index.Draft, blob, device, gotDevice []byte) {
	t.Helper()
	if d.Layer != digest.FromBytes(blob) || d.DiffID != digest.FromBytes(device) ||
		d.LayerSize != int64(len(blob)) {
		t.Fatalf("header %+v", d.Header)
	}
	if !bytes.Equal(gotDevice, device) ||
		!bytes.Equal(unpack(t, blob, int64(len(device))), device) {
		t.Fatal("device differs")
	}
	at := int64(0)
	for i, s := range d.Spans {
		want := index.Span{Codec: index.FromStart, Device: at, Size: s.Size}
		at += s.Size
		want.Digest = sha256.Sum256(device[s.Device:at])
		if s != want || s.Size <= 0 {
			t.Fatalf("span %d: %+v", i, s)
		}
	}
	if at != int64(len(device)) {
		t.Fatalf("spans end at %d of %d", at, len(device))
	}
	var file bytes.Buffer
	if _, err := index.Write(&file, d); err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if spans, err := x.Spans(); err != nil || len(spans) != len(d.Spans) {
		t.Fatalf("%d spans: %v", len(spans), err)
	}
	if err := index.Check(t.Context(), x); len(d.Spans) > 0 && !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("an index from elsewhere is taken: %v", err)
	}
}

func TestWhole(t *testing.T) {
	device := tarOf(t, 3000, 2_000_000, 0, 40_000)
	large := tarOf(t, 18_000_000, 3000, 2_000_000)
	a, b := device[:1_000_000], device[1_000_000:]
	frame := func(p []byte) []byte { return zstdOf(t, 1<<20, p) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tt := range map[string]struct {
		blob, device []byte
		window       int64
	}{
		"one frame":    {zstdOf(t, 8<<20, device), device, 0},
		"many frames":  {join(frame(a[:10]), frame(a[10:]), frame(b)), device, 0},
		"empty frames": {zstdOf(t, 1<<20, nil, device, nil), device, 0},
		"skippable frames": {join(skippable(4), frame(a), skippable(300_000), frame(b),
			skippable(40)), device, 0},
		"a large skippable first": {join(skippable(200_000), frame(device)), device, 0},
		"large window":            {zstdOf(t, 64<<20, device), device, 0},
		"largest window":          {zstdOf(t, 128<<20, device), device, 0},
		"a larger window later":   {zstdOf(t, 1<<20, a), device, MaxZstdWindow},
		"no files":                {zstdOf(t, 1<<20, nil), nil, 0},
		"one block of deflate":    {oneBlock(large), large, 0},
		"a block after members": {join(zip(t, 6, large[:900_000]), oneBlock(large[900_000:])),
			large, 0},
		"a block before a member": {join(oneBlock(large[:17_500_000]),
			zip(t, 6, large[17_500_000:])), large, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.window > 0 {
				tt.blob = append(tt.blob, zstdOf(t, 32<<20, b)...)
				_, err := Scan(t.Context(), bytes.NewReader(tt.blob), Options{Whole: true})
				if !errors.Is(err, ErrWindow) {
					t.Fatalf("error %v, want ErrWindow", err)
				}
			}
			var got, windows bytes.Buffer
			o := Options{Whole: true, Device: &got, Windows: &windows, Window: tt.window}
			d, err := Scan(t.Context(), bytes.NewReader(tt.blob), o)
			if err != nil {
				t.Fatal(err)
			}
			verifyWhole(t, d, tt.blob, tt.device, got.Bytes())
			_, err = Scan(t.Context(), bytes.NewReader(tt.blob), Options{Window: tt.window})
			if !errors.Is(err, ErrNotIndexable) {
				t.Errorf("without Whole: %v", err)
			}
		})
	}
}

// TestMalformed: a blob that is no layer is read to its end, so that its digest tells who is to
// blame.
func TestMalformed(t *testing.T) {
	device := tarOf(t, 3000, 400_000)
	gz, zs := zip(t, 6, device), zstdOf(t, 1<<20, device)
	change := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[len(b)+at] ^= 0x10
		return b
	}
	more := func(b []byte, s string) []byte { return append(bytes.Clone(b), s...) }
	for name, blob := range map[string][]byte{
		"gzip, 21 bytes behind":     more(gz, "twenty-one bytes more"),
		"gzip, one byte behind":     more(gz, "x"),
		"gzip, half a header":       more(gz, "\x1f\x8b\x08"),
		"gzip, bytes behind zeros":  more(gz, strings.Repeat("\x00", 300_000)+"x"),
		"gzip, wrong crc":           change(gz, -6),
		"gzip, wrong length":        change(gz, -1),
		"gzip, truncated":           gz[:len(gz)/2],
		"gzip, no trailer":          gz[:len(gz)-8],
		"gzip, wrong second member": change(append(bytes.Clone(gz), gz...), -20),
		"zstd, bytes behind":        more(zs, "twenty-one bytes more"),
		"zstd, wrong checksum":      change(zs, -2),
		"zstd, truncated":           zs[:len(zs)/2],
		"zstd, half a frame behind": more(zs, string(zs[:100])),
		"no tar":                    zip(t, 6, []byte(strings.Repeat("no tar ", 100_000))),
		"a page":                    []byte("<html>" + strings.Repeat("no layer ", 100_000)),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Scan(t.Context(), bytes.NewReader(blob), Options{Whole: true})
			var bad *Malformed
			if !errors.As(err, &bad) || !errors.Is(err, ErrCorrupt) ||
				bad.Layer != digest.FromBytes(blob) {
				t.Fatalf("error %v", err)
			}
		})
	}
	for name, blob := range map[string][]byte{
		"gzip, zeros behind": more(gz, strings.Repeat("\x00", 1000)),
		"gzip, empty members": bytes.Join([][]byte{zip(t, 6, nil), gz, zip(t, 6, nil)},
			nil),
		"gzip, several members": append(zip(t, 6, device[:70_000]),
			zip(t, 6, device[70_000:])...),
		"plain":                       device,
		"plain, bytes behind its end": more(device, "not looked at"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Scan(t.Context(), bytes.NewReader(blob), Options{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestForeign: of what is in another compression no more is read than its head.
func TestForeign(t *testing.T) {
	for magic := range foreign {
		r := io.MultiReader(strings.NewReader(magic+"xx"), &failing{})
		if _, err := Scan(t.Context(), r, Options{Whole: true}); !errors.Is(err, ErrNotIndexable) {
			t.Errorf("%q: %v", magic, err)
		}
	}
}

func (f *failing) Read([]byte) (int, error) { return 0, errInjected }

// TestPanic: a fault that a blob finds is an error of its scan.
func TestPanic(t *testing.T) {
	blob := zip(t, 6, tarOf(t, 100_000))
	fault := func(io.Reader) (*erofs.Node, error) { panic("a fault") }
	_, err := scan(t.Context(), bytes.NewReader(blob), Options{}, fault)
	var p *Panic
	var bad *Malformed
	if !errors.As(err, &p) || p.Value != "a fault" || len(p.Stack) == 0 || !errors.As(err, &bad) {
		t.Fatalf("error %v", err)
	}
}

// TestMemory: trees and decoders ask before they take memory.
func TestMemory(t *testing.T) {
	var sizes []int
	for range 5000 {
		sizes = append(sizes, 1)
	}
	device := tarOf(t, sizes...)
	for name, tt := range map[string]struct {
		blob  []byte
		least int64
	}{
		"tree": {zip(t, 6, device), 5000 * 300},
		"zstd": {zstdOf(t, 32<<20, device), 32<<20 + 5000*300},
	} {
		t.Run(name, func(t *testing.T) {
			var told int64
			o := Options{Whole: true, Limits: tartree.Limits{Memory: func(n int64) error {
				told += n // the zstd decoder has asked before the tree begins
				return nil
			}}}
			if _, err := Scan(t.Context(), bytes.NewReader(tt.blob), o); err != nil ||
				told < tt.least {
				t.Errorf("%d bytes were asked for, at least %d expected; %v", told, tt.least, err)
			}
			o.Limits.Memory = func(int64) error { return errInjected }
			_, err := Scan(t.Context(), bytes.NewReader(tt.blob), o)
			var bad *Malformed
			if !errors.Is(err, errInjected) || errors.As(err, &bad) {
				t.Errorf("refused memory: %v", err)
			}
		})
	}
}

// FuzzWhole: what a scan accepts comes again from Unpack, byte by byte.
func FuzzWhole(f *testing.F) {
	device := tarOf(f, 3000, 200_000)
	f.Add(zstdOf(f, 1<<20, device))
	frames := zstdOf(f, 1<<20, device[:70_000], device[70_000:])
	f.Add(bytes.Join([][]byte{skippable(12), frames, skippable(3)}, nil))
	f.Add(append(zipFlushed(f, 5000, device), 0, 0, 0))
	f.Add(device[:5000])
	f.Fuzz(func(t *testing.T, blob []byte) {
		var dev bytes.Buffer
		o := Options{SpanSize: MinSpanSize, Device: &dev, DeviceSize: 64 << 20, Whole: true}
		d, err := scan(t.Context(), bytes.NewReader(blob), o,
			func(io.Reader) (*erofs.Node, error) { return new(erofs.Node), nil })
		if err != nil {
			return
		}
		if got := unpack(t, blob, d.DeviceSize); !bytes.Equal(got, dev.Bytes()) {
			t.Fatalf("%d bytes differ", len(got))
		}
	})
}
