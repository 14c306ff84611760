package index

import "crypto/sha256"

// Codec says how the device bytes of a span lie in the blob.
type Codec uint8

// The codecs.
const (
	Stored  Codec = iota // the blob's bytes are the device's: an uncompressed tar
	Deflate              // inside a gzip member: raw deflate from bit Bit, after a window
	Gzip                 // a gzip member's header starts here; no window
	// Zstd: zstd frames (RFC 8878); no window. Not in an index: of copies of spans, which lie
	// elsewhere.
	Zstd
	// FromStart: the span has no place of its own in the blob, which can only be decoded from its
	// beginning. Blob and BlobSize are 0. All spans of a layer are FromStart, or none is.
	FromStart
)

// Span is the unit that is fetched, decoded and verified: a range of the device
// and the range of the compressed blob that holds it. The spans of a layer
// are in order, without gaps, and cover the whole device.
type Span struct {
	Device int64 // first byte in the device
	Size   int64 // bytes in the device
	Blob   int64 // first byte in the compressed blob
	// BlobSize is the length of the range in the blob. With Deflate the last
	// byte may be shared with the next span. A range covers whatever lies between two
	// members (trailers, headers, empty members).
	BlobSize int64
	Codec    Codec
	Bit      uint8 // Deflate: how many low bits of the first byte belong to the span before (0 to 7)

	// Window is the place of the encoded window in the layer's windows
	// section; Size 0: none is needed.
	Window       Range
	WindowDigest [sha256.Size]byte // of the encoded window; zero: not stated, Digest tells as well
	Digest       [sha256.Size]byte // of the span's device bytes
}

// Range is a range of bytes.
type Range struct {
	Off, Size int64
}
