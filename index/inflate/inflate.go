// Package inflate decodes raw deflate streams (RFC 1951) between slices, and
// parses the gzip headers (RFC 1952) that surround them.
//
// It exists because an index needs what compress/flate does not offer: to start
// at any block boundary with a given history, to stop after any number of
// bytes, to learn where blocks begin and which bytes of the history they refer
// to, and speed, since every byte that a container reads passes through here.
//
// The data's way: the caller owns both slices. Decode appends to dst what it
// can make of src and says why it stopped. It never looks at a byte twice that
// it reported as read, so a caller that streams keeps only the unread tail of
// src and puts more behind it. Matches may refer to all that lies in dst before
// the write position and, before that, to the history given with SetHistory.
//
// A Decoder belongs to one goroutine at a time.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// windowSize is the farthest that a match can refer back, in bytes.
const windowSize = 32 << 10

// MinInput is the number of unread bytes of src with which Decode is sure to
// make progress: the longest block header (17 + 19×3 bits, then 316 code
// lengths of at most 7+7 bits) is 563 bytes.
const MinInput = 576

// ErrCorrupt is wrapped by the errors for input that is no deflate stream.
var ErrCorrupt = errors.New("corrupt deflate stream")

// corruptError says what is wrong with a stream, and where.
type corruptError struct {
	Bit    int64 // offset from the first bit of the src of the failing call
	Reason string
}

func (e *corruptError) Error() string {
	return fmt.Sprintf("corrupt deflate stream at bit %d: %s", e.Bit, e.Reason)
}

// Unwrap makes errors.Is(err, ErrCorrupt) true.
func (e *corruptError) Unwrap() error { return ErrCorrupt }

// Status says why Decode returned.
type Status uint8

const (
	// NeedInput means that the rest of src is less than a symbol or a block
	// header.
	NeedInput Status = iota
	// OutputFull means that dst is full. A match may have been cut; its rest
	// comes first in the next call.
	OutputFull
	// BlockStart means that a block header follows. Only with StopAtBlocks,
	// and not before the first block after Reset.
	BlockStart
	// StreamEnd means that the final block is over. The input is positioned
	// at the first whole byte after it.
	StreamEnd
)

// Ref is a match that reaches into the history: a range of bytes before dst[0].
type Ref struct {
	Back int32 // the range begins that many bytes before dst[0]; 1 to windowSize
	Size int32 // bytes of the range, all of them before dst[0]
}

type state uint8

const (
	atHeader state = iota
	inStored
	inHuffman
	atEnd
)

// Decoder is the state of one stream. The zero value is not ready: Reset it.
type Decoder struct {
	// StopAtBlocks makes Decode return BlockStart before every block header.
	StopAtBlocks bool
	// Track makes Decode append to Refs what matches refer to in the history.
	Track bool
	// Refs belongs to the caller between calls: empty it at will. One call
	// appends at most one entry for each three bytes of the first windowSize bytes
	// of dst.
	Refs []Ref

	hist     []byte // what lies before dst[0]
	state    state
	final    bool
	stopped  bool // BlockStart has been reported for the header to come
	fixed    bool // the tables are those of fixed blocks
	bit      uint // how many low bits of src[0] are already read, 0 to 7
	stored   int  // bytes left of a stored block
	copyLen  int  // a match that did not fit: its rest
	copyDist int

	lit  litTable
	dist distTable
	lens [maxLit + maxDist]uint8
}

// Reset begins a new stream: a block header follows bit low bits (0 to 7) of the
// next src, which belong to something else. The history becomes empty; fields
// that the caller owns stay.
func (d *Decoder) Reset(bit uint8) {
	d.hist = nil
	d.state = atHeader
	d.final = false
	d.stopped = true
	d.bit = uint(bit & 7)
	d.stored, d.copyLen, d.copyDist = 0, 0, 0
}

// SetHistory says what lies before dst[0] of the next calls. The slice is not
// copied. More than its last windowSize bytes is never looked at.
func (d *Decoder) SetHistory(hist []byte) { d.hist = hist }

// Bit is the number of low bits of the next src's first byte that are already
// read: together with the bytes read, the position in the stream.
func (d *Decoder) Bit() uint8 { return uint8(d.bit) }

// Decode appends to dst[:w], up to len(dst), and returns the new w, the number
// of bytes of src that are read (the caller gives the rest again) and why it
// stopped. Bytes of dst behind the new w may be overwritten with anything.
//
// NeedInput with all input given means that the stream is truncated.
func (d *Decoder) Decode(dst []byte, w int, src []byte) (nw, r int, s Status, err error) {
	in := reader{src: src}
	if !in.start(d.bit) {
		return w, 0, NeedInput, nil
	}
	w, s, err = d.run(dst, w, &in)
	if err != nil {
		var c *corruptError
		if errors.As(err, &c) {
			c.Bit = int64(in.r)*8 - int64(in.n)
		}
		return w, 0, s, err
	}
	r, d.bit = in.stop()
	return w, r, s, nil
}

// run is the state machine over blocks.
func (d *Decoder) run(dst []byte, w int, in *reader) (int, Status, error) {
	var done bool
	var err error
	for {
		switch d.state {
		case atHeader:
			if d.StopAtBlocks && !d.stopped {
				d.stopped = true
				return w, BlockStart, nil
			}
			ok, err := d.header(in)
			if !ok || err != nil {
				return w, NeedInput, err
			}
			d.stopped = false
			continue
		case inStored:
			w, done = d.copyStored(dst, w, in)
		case inHuffman:
			w, done, err = d.huffman(dst, w, in)
			if err != nil {
				return w, NeedInput, err
			}
		case atEnd:
			in.align()
			return w, StreamEnd, nil
		}
		if !done {
			if w == len(dst) {
				return w, OutputFull, nil
			}
			return w, NeedInput, nil
		}
		d.state = atHeader
		if d.final {
			d.state = atEnd
		}
	}
}

// header reads a block header. Nothing is read unless all of it is there.
func (d *Decoder) header(in *reader) (ok bool, err error) {
	was := *in
	defer func() {
		if !ok && err == nil {
			*in = was
		}
	}()
	if !in.need(3) {
		return false, nil
	}
	h := in.take(3)
	d.final = h&1 != 0
	switch h >> 1 {
	case 0:
		in.align()
		if !in.need(32) {
			return false, nil
		}
		n := in.take(16)
		if in.take(16) != n^0xffff {
			return false, corrupt("stored block's length")
		}
		d.stored = int(n)
		d.state = inStored
	case 1:
		if !d.fixed {
			d.buildFixed()
		}
		d.state = inHuffman
	case 2:
		ok, err := d.dynamic(in)
		if !ok || err != nil {
			return false, err
		}
		d.state = inHuffman
	default:
		return false, corrupt("block type 3")
	}
	return true, nil
}

// copyStored copies from a stored block; done is true at its end.
func (d *Decoder) copyStored(dst []byte, w int, in *reader) (nw int, done bool) {
	in.unload() // whole bytes: a stored block is aligned
	n := min(d.stored, len(dst)-w, len(in.src)-in.r)
	copy(dst[w:], in.src[in.r:in.r+n])
	in.r += n
	d.stored -= n
	return w + n, d.stored == 0
}

// far copies a match, or the part of it that fits, which begins before dst[0].
// It reports false where it begins before the history.
func (d *Decoder) far(dst []byte, w, dist, length int) bool {
	back := dist - w
	if back > len(d.hist) || back > windowSize {
		return false
	}
	n := min(length, back)
	if d.Track {
		d.Refs = append(d.Refs, Ref{Back: int32(back), Size: int32(n)})
	}
	from := len(d.hist) - back
	copy(dst[w:], d.hist[from:from+n])
	// The rest lies in dst from its beginning, and may overlap itself.
	for i := n; i < length; i++ {
		dst[w+i] = dst[w+i-dist]
	}
	return true
}

// reader is a bit reader. Above the n valid bits of hold there may be bits of
// the bytes to come: refills put the same bits there again.
type reader struct {
	src  []byte
	r    int // next byte to load
	hold uint64
	n    uint // valid bits in hold, 0 to 63
}

// start skips the bits of the first byte that are already read.
func (in *reader) start(bit uint) bool {
	if bit == 0 {
		return true
	}
	if len(in.src) == 0 {
		return false
	}
	in.hold = uint64(in.src[0]) >> bit
	in.n = 8 - bit
	in.r = 1
	return true
}

// stop returns how many bytes are read wholly, and the bits of the next one.
func (in *reader) stop() (r int, bit uint) {
	in.unload()
	if in.n == 0 {
		return in.r, 0
	}
	return in.r - 1, 8 - in.n
}

// unload gives back the whole bytes in hold: less than 8 bits remain.
func (in *reader) unload() {
	in.r -= int(in.n >> 3)
	in.n &= 7
	in.hold &= 1<<in.n - 1
}

// align drops the bits up to the next byte boundary.
func (in *reader) align() {
	drop := in.n & 7
	in.hold >>= drop
	in.n -= drop
}

// fill loads as many whole bytes as there are room and input for.
func (in *reader) fill() {
	if in.r+8 <= len(in.src) {
		in.hold |= binary.LittleEndian.Uint64(in.src[in.r:]) << in.n
		in.r += int((63 - in.n) >> 3)
		in.n |= 56
		return
	}
	in.hold &= 1<<in.n - 1
	for in.n <= 55 && in.r < len(in.src) {
		in.hold |= uint64(in.src[in.r]) << in.n
		in.r++
		in.n += 8
	}
}

// need reports whether n bits (up to 56) are there, and loads them.
func (in *reader) need(n uint) bool {
	if in.n < n {
		in.fill()
	}
	return in.n >= n
}

// take removes n bits that are there.
func (in *reader) take(n uint) uint32 {
	v := uint32(in.hold & (1<<n - 1))
	in.hold >>= n
	in.n -= n
	return v
}

func corrupt(reason string) error { return &corruptError{Reason: reason} }

// reverse mirrors the low n bits of v: deflate sends codes from their top bit.
func reverse(v uint32, n uint) uint32 {
	return uint32(bits.Reverse16(uint16(v))) >> (16 - n)
}
