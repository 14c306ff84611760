package bundle

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	. "github.com/mica-snapshotter/mica/index/indextest"
)

// TestSize: the compressed tree takes no more than 12 bytes a file.
func TestSize(t *testing.T) {
	const files = 20_000
	raw := Wide(files).Write(t)
	w := &writer{}
	in := &Input{Index: bytes.NewReader(raw), Size: int64(len(raw))}
	_, packed, err := w.frameOf(in, raw[:1024], OpenBytes(t, raw))
	if err != nil || !packed {
		t.Fatalf("packed: %t, %v", packed, err)
	}
	if w.frames.Len() > 12*files {
		t.Errorf("%.1f bytes a file", float64(w.frames.Len())/files)
	}
}

// BenchmarkExtract takes a layer that is packed, as most are.
func BenchmarkExtract(b *testing.B) {
	bundle := bundleOf(b, Wide(60_000))
	x := bundle.open(b)
	b.SetBytes(x.Layers()[0].IndexSize)
	b.ReportMetric(float64(bundle.trees.Len())/60_000, "B/file")
	b.ReportAllocs()
	for b.Loop() {
		if err := x.Extract(x.Layers()[0].Layer, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompress compares the levels that an index could be compressed with.
func BenchmarkCompress(b *testing.B) {
	raw := Wide(100_000).Write(b)
	for _, level := range []zstd.EncoderLevel{zstd.SpeedDefault, zstd.SpeedBetterCompression,
		zstd.SpeedBestCompression} {
		b.Run(level.String(), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level),
				zstd.WithEncoderConcurrency(1))
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				b.ReportMetric(float64(len(z.EncodeAll(raw, nil)))/100_000, "B/file")
			}
		})
	}
}
