package targz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/index"
)

const (
	// zstdWindow is the largest window that zstd makes at its ordinary levels, bytes.
	zstdWindow = 8 << 20
	// MaxZstdWindow is the largest window that is taken, in bytes, as by zstd(1): a decoder keeps
	// as much in memory.
	MaxZstdWindow = 128 << 20
	// zstdTables is what a decoder takes beside its window, bytes.
	zstdTables = 1 << 20
	// zstdHead is more than the header of a frame, and some short skippable frames before it,
	// bytes.
	zstdHead = 128
)

// ErrWindow is wrapped by the error for a blob in zstd of which a later frame has a larger window
// than the first one told of: it is to be scanned anew, with Options.Window.
var ErrWindow = errors.New("a later frame of zstd has a larger window than the first one")

// isZstd says whether a blob that begins so is a zstd frame, or a skippable one (RFC 8878, 3.1).
func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	magic := binary.LittleEndian.Uint32(head)
	return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50
}

// unzstd is the inflating goroutine of a scan of frames of zstd. Nothing is known of where in them
// a span could begin: the layer's spans are index.FromStart.
func unzstd(in *input, out *output, spans *[]index.Span) error {
	if !out.o.Whole {
		return fmt.Errorf("%w: it is in zstd, which is decoded from the beginning", ErrNotIndexable)
	}
	r := &blobReader{in: in}
	window := max(zstdWindow, out.o.Window)
	first, err := r.peek(zstdHead)
	if err != nil {
		return err
	}
	window = max(window, windowOf(first))
	if window > MaxZstdWindow {
		return fmt.Errorf("%w: its zstd has a window of %d bytes, %d are taken",
			ErrNotIndexable, window, MaxZstdWindow)
	}
	if err := out.o.Limits.Take(window + zstdTables); err != nil {
		return err
	}
	z, err := newZstd(r, window)
	if err != nil {
		return err
	}
	defer z.Close()
	return evenly(zstdReader{z, in, window}, out, index.FromStart, spans)
}

// newZstd returns a decoder that works in the goroutine of its reader.
func newZstd(r io.Reader, window int64) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(window)))
}

// zstdReader says what the errors of a decoder mean.
type zstdReader struct {
	z      *zstd.Decoder
	in     *input
	window int64
}

// Read implements io.Reader.
func (r zstdReader) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case r.in.ctx.Err() != nil:
		return n, r.in.ctx.Err()
	case errors.Is(err, zstd.ErrWindowSizeExceeded) && r.window < MaxZstdWindow:
		return n, fmt.Errorf("%w: %w", ErrNotIndexable, ErrWindow)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return n, fmt.Errorf("%w: its zstd has a window of more than %d bytes", ErrNotIndexable, r.window)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, fmt.Errorf("%w: ends within a zstd frame", ErrCorrupt)
	}
	return n, fmt.Errorf("%w: zstd: %w", ErrCorrupt, err)
}

// windowOf returns the window of the first frame in head that is not skippable; 0: it is not known.
func windowOf(head []byte) int64 {
	for {
		var h zstd.Header
		if h.Decode(head) != nil {
			return 0
		}
		switch {
		case h.Skippable:
			n := int64(h.HeaderSize) + int64(h.SkippableSize)
			if n >= int64(len(head)) {
				return 0
			}
			head = head[n:]
			continue
		case h.SingleSegment:
			return int64(min(h.FrameContentSize, 1<<62))
		}
		return int64(min(h.WindowSize, 1<<62))
	}
}

// peek returns the next n bytes, or what is left of the blob if that is less.
func (r *blobReader) peek(n int) ([]byte, error) {
	for len(r.src) < n {
		src, err := r.in.more(r.src)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		r.src = src
	}
	return r.src[:min(n, len(r.src))], nil
}
