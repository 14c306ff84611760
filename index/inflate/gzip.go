package inflate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

const (
	// TrailerSize is what follows a gzip member's deflate stream: CRC-32 and
	// length of its content, 4 bytes each, little-endian.
	TrailerSize = 8

	// maxHeader bounds a gzip header: an extra field of 64 KiB, name and
	// comment.
	maxHeader = 128 << 10

	fixedHeader = 10

	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
)

var (
	// ErrShort is returned for a gzip header that goes on behind the end of
	// the slice.
	ErrShort = errors.New("gzip header is cut short")
	// ErrHeader is returned for what is no gzip header.
	ErrHeader = errors.New("no gzip header")
)

// Header returns the length of the gzip header (RFC 1952, 2.3) at the start of
// src. ErrShort: it may be one, but needs more bytes, of which maxHeader are
// enough. Reserved flags are ignored, as compress/gzip does.
func Header(src []byte) (int, error) {
	magic := []byte{0x1f, 0x8b, 8}
	if n := min(len(src), len(magic)); !bytes.Equal(src[:n], magic[:n]) {
		return 0, ErrHeader
	}
	if len(src) < fixedHeader {
		return 0, ErrShort
	}
	flags := src[3]
	short := ErrShort
	if len(src) >= maxHeader {
		short = ErrHeader
		src = src[:maxHeader]
	}
	n := fixedHeader
	if flags&flagExtra != 0 {
		if len(src)-n < 2 {
			return 0, short
		}
		n += 2 + int(binary.LittleEndian.Uint16(src[n:]))
		if n > len(src) {
			return 0, short
		}
	}
	for _, f := range [...]byte{flagName, flagComment} {
		if flags&f == 0 {
			continue
		}
		i := bytes.IndexByte(src[n:], 0)
		if i < 0 {
			return 0, short
		}
		n += i + 1
	}
	if flags&flagHeaderCRC != 0 {
		if len(src)-n < 2 {
			return 0, short
		}
		if binary.LittleEndian.Uint16(src[n:]) != uint16(crc32.ChecksumIEEE(src[:n])) {
			return 0, ErrHeader
		}
		n += 2
	}
	return n, nil
}
