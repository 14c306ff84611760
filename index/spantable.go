package index

import (
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/mica-snapshotter/mica/index/window"
)

// Bounds of one span: what a reader must be ready to hold in memory.
const (
	MaxSpanSize   = 64 << 20           // bytes in the device and in the blob, each
	MaxSpans      = 1 << 20            // of one layer: a table of 112 MiB, loaded at the first read
	MaxWindowSize = 2*window.Size + 64 // of an encoded window: package window makes at most 65,542
)

// A record of the span table:
//
//	 0  8  device offset      32  4  0
//	 8  8  blob offset        36  4  encoded window: size
//	16  4  bytes in device    40  8  encoded window: offset in the windows
//	20  4  bytes in blob      48 32  sha256 of the encoded window
//	24  1  codec              80 32  sha256 of the device bytes
//	25  1  bit
//	26  6  0
//
// Older versions of mica state the window's digest, newer ones leave it zero: a third of a packed
// span.
const spanSize = 112

// Spans is the span table of a layer, in the order of device offsets.
type Spans []Span

// Find returns the position of the span that holds the device offset off, or
// -1 where there is none.
func (s Spans) Find(off int64) int {
	i := sort.Search(len(s), func(i int) bool { return s[i].Device > off }) - 1
	if i < 0 || off >= s[i].Device+s[i].Size {
		return -1
	}
	return i
}

// Cut returns the spans [first, last) that hold any of device bytes [off, end), however far these
// reach.
func (s Spans) Cut(off, end int64) (first, last int) {
	if len(s) == 0 {
		return 0, 0
	}
	off, end = max(off, 0), min(end, s[len(s)-1].Device+s[len(s)-1].Size)
	if off >= end {
		return 0, 0
	}
	return s.Find(off), s.Find(end-1) + 1
}

// FromStart says whether the layer can only be fetched as a whole: see Codec.
func (s Spans) FromStart() bool { return len(s) > 0 && s[0].Codec == FromStart }

// check says what is wrong with s as the spans of h's layer.
func (s Spans) check(h *Header) error {
	if len(s) > MaxSpans {
		return fmt.Errorf("%d spans: an index has at most %d", len(s), MaxSpans)
	}
	device, blob := int64(0), int64(0)
	for i := range s {
		p := &s[i]
		if err := p.check(h); err != nil {
			return fmt.Errorf("span %d: %w", i, err)
		}
		if (p.Codec == FromStart) != s.FromStart() {
			return fmt.Errorf("span %d has codec %d, the first one %d", i, p.Codec, s[0].Codec)
		}
		if p.Device != device {
			return fmt.Errorf("span %d begins at device offset %d, not %d", i, p.Device, device)
		}
		if p.Bit > 0 && i > 0 {
			blob-- // the byte that holds the end of the span before
		}
		if p.Blob < blob {
			return fmt.Errorf("span %d begins at blob offset %d, before %d", i, p.Blob, blob)
		}
		device += p.Size
		blob = p.Blob + p.BlobSize
	}
	if device != h.DeviceSize {
		return fmt.Errorf("spans cover %d bytes of a device of %d", device, h.DeviceSize)
	}
	return nil
}

func (s *Span) check(h *Header) error {
	if s.Codec == FromStart {
		return s.checkFromStart()
	}
	switch {
	case s.Size <= 0 || s.Size > MaxSpanSize || s.BlobSize <= 0 || s.BlobSize > MaxSpanSize:
		return fmt.Errorf("%d bytes from %d: each has to be 1 to %d", s.Size, s.BlobSize, MaxSpanSize)
	case s.Blob < 0 || s.Blob > h.LayerSize-s.BlobSize:
		return fmt.Errorf("blob range %d+%d: the blob has %d bytes", s.Blob, s.BlobSize, h.LayerSize)
	case s.Codec > Gzip:
		return fmt.Errorf("codec %d is unknown", s.Codec)
	case s.Codec == Stored && s.BlobSize != s.Size:
		return fmt.Errorf("stored, but %d bytes from %d", s.Size, s.BlobSize)
	case s.Bit > 7 || s.Bit > 0 && s.Codec != Deflate:
		return fmt.Errorf("bit %d", s.Bit)
	case s.Window.Size < 0 || s.Window.Size > MaxWindowSize || s.Window.Size > 0 && s.Codec != Deflate:
		return fmt.Errorf("window of %d bytes", s.Window.Size)
	case s.Window.Off < 0 || s.Window.Off > h.WindowsSize-s.Window.Size:
		return fmt.Errorf("window at %d+%d: the windows have %d bytes",
			s.Window.Off, s.Window.Size, h.WindowsSize)
	}
	return nil
}

// checkFromStart is check for a span without a place in the blob.
func (s *Span) checkFromStart() error {
	switch {
	case s.Size <= 0 || s.Size > MaxSpanSize:
		return fmt.Errorf("%d bytes: has to be 1 to %d", s.Size, MaxSpanSize)
	case s.Blob != 0 || s.BlobSize != 0 || s.Bit != 0 || s.Window != Range{}:
		return fmt.Errorf("codec %d has no place in the blob", s.Codec)
	}
	return nil
}

// append encodes s.
func (s *Span) append(b []byte) []byte {
	var r [spanSize]byte
	le := binary.LittleEndian
	le.PutUint64(r[0:], uint64(s.Device))
	le.PutUint64(r[8:], uint64(s.Blob))
	le.PutUint32(r[16:], uint32(s.Size))
	le.PutUint32(r[20:], uint32(s.BlobSize))
	r[24], r[25] = uint8(s.Codec), s.Bit
	le.PutUint32(r[36:], uint32(s.Window.Size))
	le.PutUint64(r[40:], uint64(s.Window.Off))
	copy(r[48:], s.WindowDigest[:])
	copy(r[80:], s.Digest[:])
	return append(b, r[:]...)
}

// decodeSpans parses and checks a span table, whose length is a multiple of spanSize.
func decodeSpans(b []byte, h *Header) (Spans, error) {
	le := binary.LittleEndian
	spans := make(Spans, len(b)/spanSize)
	for i := range spans {
		r, s := b[i*spanSize:][:spanSize], &spans[i]
		if !allZero(r[26:36]) {
			return nil, corrupt("span %d: reserved bytes are in use", i)
		}
		s.Device, s.Blob = int64(le.Uint64(r[0:])), int64(le.Uint64(r[8:]))
		s.Size, s.BlobSize = int64(le.Uint32(r[16:])), int64(le.Uint32(r[20:]))
		s.Codec, s.Bit = Codec(r[24]), r[25]
		s.Window = Range{Off: int64(le.Uint64(r[40:])), Size: int64(le.Uint32(r[36:]))}
		copy(s.WindowDigest[:], r[48:])
		copy(s.Digest[:], r[80:])
	}
	if err := spans.check(h); err != nil {
		return nil, corrupt("%v", err)
	}
	return spans, nil
}
