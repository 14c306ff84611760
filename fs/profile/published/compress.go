package published

import (
	"context"
	"fmt"
	"runtime"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Reader fills p from a blob, from off on. Parallel calls are made.
type Reader func(ctx context.Context, d ocispec.Descriptor, p []byte, off int64) error

// readAtOnce is how many bytes of a blob are read by one request at most, where they are more than
// one span.
const readAtOnce = 4 << 20

// Compress returns the zstd frames of spans, whose bytes it verifies. windows is the index's blob
// of windows.
func Compress(
	ctx context.Context, read Reader, windows ocispec.Descriptor, spans []LayerSpan,
) ([][]byte, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	all := make([][]byte, len(spans))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, n := 0, 0; i < len(spans); i += n {
		n = neighbours(spans[i:])
		run, frames := spans[i:i+n], all[i:i+n]
		g.Go(func() error {
			if err := compressRun(ctx, read, z, windows, run, frames); err != nil {
				return fmt.Errorf("spans %d to %d of layer %s: %w", run[0].Number,
					run[0].Number+len(run)-1, run[0].Layer, err)
			}
			return nil
		})
	}
	return all, g.Wait()
}

// neighbours returns how many of the first spans follow each other in a layer's blob, and are read
// by one request.
func neighbours(spans []LayerSpan) int {
	first := &spans[0]
	for n := 1; n < len(spans); n++ {
		s := &spans[n]
		if s.Layer != first.Layer || s.Number != first.Number+n ||
			s.Span.Blob+s.Span.BlobSize-first.Span.Blob > readAtOnce {
			return n
		}
	}
	return len(spans)
}

// compressRun fills frames from neighbours.
func compressRun(
	ctx context.Context, read Reader, z *zstd.Encoder, windows ocispec.Descriptor, run []LayerSpan,
	frames [][]byte,
) error {
	first, last := &run[0], &run[len(run)-1]
	blob := make([]byte, last.Span.Blob+last.Span.BlobSize-first.Span.Blob)
	if err := read(ctx, ocispec.Descriptor{Digest: first.Layer, Size: first.LayerSize}, blob,
		first.Span.Blob); err != nil {
		return err
	}
	from, to := windowRange(run)
	encoded := make([]byte, to-from)
	if len(encoded) > 0 {
		if err := read(ctx, windows, encoded, first.Windows.Off+from); err != nil {
			return err
		}
	}
	for i := range run {
		s := &run[i].Span
		var window []byte
		if w := s.Window; w.Size > 0 {
			window = encoded[w.Off-from:][:w.Size]
		}
		device := make([]byte, s.Size)
		if err := s.Decode(device, blob[s.Blob-first.Span.Blob:][:s.BlobSize], window); err != nil {
			return err
		}
		frames[i] = z.EncodeAll(device, nil)
	}
	return nil
}

// windowRange returns where in the layer's windows those of the spans lie.
func windowRange(run []LayerSpan) (from, to int64) {
	for i := range run {
		switch w := run[i].Span.Window; {
		case w.Size == 0:
		case to == 0:
			from, to = w.Off, w.Off+w.Size
		default:
			from, to = min(from, w.Off), max(to, w.Off+w.Size)
		}
	}
	return from, to
}
