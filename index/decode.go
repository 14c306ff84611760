package index

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/index/inflate"
	"github.com/mica-snapshotter/mica/index/window"
)

// spanDecoder is what decoding a span needs beside the caller's slices.
type spanDecoder struct {
	inflate.Decoder
	window [window.Size]byte
}

// Tables and window are 60 KiB: worth keeping between spans.
var spanDecoders = sync.Pool{New: func() any { return new(spanDecoder) }}

// Decode fills dst, of length s.Size, from blob, which is the range of the blob
// that the span names, and, where s.Window.Size is not 0, the encoded window.
// It checks dst against Digest, and the window against WindowDigest where that is
// stated. The error for whatever does not fit wraps ErrCorrupt; dst then holds
// anything.
//
// Calls may run in parallel. Nothing is allocated that grows with the input.
func (s *Span) Decode(dst, blob, win []byte) error {
	if int64(len(dst)) != s.Size || int64(len(blob)) != s.BlobSize ||
		int64(len(win)) != s.Window.Size {
		return fmt.Errorf("decode span at %d: given %d bytes of %d for %d of %d, window %d of %d",
			s.Device, len(blob), s.BlobSize, len(dst), s.Size, len(win), s.Window.Size)
	}
	if err := s.decode(dst, blob, win); err != nil {
		return fmt.Errorf("decode span at %d: %w", s.Device, err)
	}
	if sha256.Sum256(dst) != s.Digest {
		return fmt.Errorf("decode span at %d: %w: digest differs", s.Device, ErrCorrupt)
	}
	return nil
}

// decode does all but the check of the result.
func (s *Span) decode(dst, blob, win []byte) error {
	switch s.Codec {
	case Stored:
		if len(dst) != len(blob) {
			return fmt.Errorf("%w: stored span of %d bytes in %d", ErrCorrupt, len(dst), len(blob))
		}
		copy(dst, blob)
		return nil
	case Zstd:
		return decodeZstd(dst, blob)
	case Gzip, Deflate:
	default:
		return fmt.Errorf("%w: codec %d", ErrCorrupt, s.Codec)
	}
	d := spanDecoders.Get().(*spanDecoder)
	defer func() {
		d.SetHistory(nil)
		spanDecoders.Put(d)
	}()
	if s.Codec == Gzip {
		return d.members(dst, blob)
	}
	if s.Bit > 7 {
		return fmt.Errorf("%w: bit %d", ErrCorrupt, s.Bit)
	}
	d.Reset(s.Bit)
	if len(win) > 0 {
		if s.WindowDigest != [sha256.Size]byte{} && sha256.Sum256(win) != s.WindowDigest {
			return fmt.Errorf("%w: window's digest differs", ErrCorrupt)
		}
		if err := window.Decode(d.window[:], win); err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		d.SetHistory(d.window[:])
	}
	n, r, end, err := d.stream(dst, blob)
	if err != nil || !end || n == len(dst) {
		return err
	}
	blob = blob[r:]
	if len(blob) < inflate.TrailerSize {
		return fmt.Errorf("%w: ends in a member's trailer", ErrCorrupt)
	}
	return d.members(dst[n:], blob[inflate.TrailerSize:])
}

// zstdDecoder has as many decoders as there are processors, and no goroutines of its own. What it
// allocates for a frame grows with dst alone: one without a size can have a block more than dst
// before it is refused.
var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(MaxSpanSize), zstd.WithDecodeAllCapLimit(true),
		zstd.IgnoreChecksum(true))
})

// decodeZstd fills dst from zstd frames. Their checksums are not looked at: the span's digest says
// more.
func decodeZstd(dst, blob []byte) error {
	z, err := zstdDecoder()
	if err != nil {
		return err
	}
	got, err := z.DecodeAll(blob, dst[:0:len(dst)])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if len(got) != len(dst) {
		return fmt.Errorf("%w: ends after %d of %d bytes", ErrCorrupt, len(got), len(dst))
	}
	return nil
}

// members decodes gzip members until dst is full. The checksums in their
// trailers are not looked at: the span's digest says more.
func (d *spanDecoder) members(dst, blob []byte) error {
	for len(dst) > 0 {
		h, err := inflate.Header(blob)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		d.Reset(0)
		n, r, end, err := d.stream(dst, blob[h:])
		if err != nil {
			return err
		}
		dst, blob = dst[n:], blob[h+r:]
		if end && len(dst) > 0 {
			if len(blob) < inflate.TrailerSize {
				return fmt.Errorf("%w: ends in a member's trailer", ErrCorrupt)
			}
			blob = blob[inflate.TrailerSize:]
		}
	}
	return nil
}

// stream decodes one deflate stream up to its end or that of dst: n bytes of
// dst from r bytes of src.
func (d *spanDecoder) stream(dst, src []byte) (n, r int, end bool, err error) {
	d.StopAtBlocks, d.Track = false, false
	n, r, status, err := d.Decode(dst, 0, src)
	switch {
	case errors.Is(err, inflate.ErrCorrupt):
		return n, r, false, fmt.Errorf("%w: %w", ErrCorrupt, err)
	case err != nil:
		return n, r, false, err
	case status == inflate.NeedInput && n < len(dst):
		return n, r, false, fmt.Errorf("%w: ends after %d of %d bytes", ErrCorrupt, n, len(dst))
	}
	return n, r, status == inflate.StreamEnd, nil
}
