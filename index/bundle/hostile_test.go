package bundle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// TestBundleBomb opens bundles whose few bytes decompress to more than the table says, or whose
// table says more than is allowed.
func TestBundleBomb(t *testing.T) {
	le := binary.LittleEndian
	good := bundleOf(t, LayerOf(File("a", "a")))
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
		"64 MiB of zeros":    with(zeros, 0),
		"as many as it says": with(zeros, 64<<20),
		"many frames":        with(bytes.Repeat(zeros, 16), 0),
		"window of 64 MiB":   with(wide.EncodeAll(make([]byte, 65<<20), nil), 65<<20),
		"size of 2^60":       with([]byte("\x28\xb5\x2f\xfd\xe4\x00\x00\x00\x00\x00\x00\x00\x10\x01\x00\x00"), 0),
		"skippable frames alone": with(bytes.Repeat([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"),
			1<<16), 0),
	} {
		t.Run(name, func(t *testing.T) {
			x, err := Open(bytes.NewReader(b), int64(len(b)), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			l := x.Layers()[0]
			var written countWriter
			n := Allocated(func() { err = x.Extract(l.Layer, &written) })
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

	layers := make([]*Layer, 5)
	for i := range layers {
		layers[i] = LayerOf(File("a", "a"))
	}
	b := bundleOf(t, layers...)
	one := int64(len(b.raw[0]))
	open := func(limit int64) error {
		_, err := Open(bytes.NewReader(b.trees.Bytes()), int64(b.trees.Len()),
			Limits{IndexSize: limit})
		return err
	}
	if err := open(5 * one); err != nil {
		t.Error(err)
	}
	if err := open(5*one - 1); !errors.Is(err, ErrLimit) ||
		!strings.Contains(err.Error(), "Limits.IndexSize") {
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
	f.Add(bundleOf(f, Small()...).trees.Bytes())
	f.Add(bundleOf(f, LayerOf(File("a", "a"))).trees.Bytes())
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
				ReadAll(y)
			}
		}
	})
}
