// Package window keeps what a span of a deflate stream needs from the bytes
// before it: of the last 32 KiB those bytes that the span refers to, compressed.
//
// A scan marks the references in a Set while it decodes what follows a block
// boundary, and calls Encode for the boundaries where spans begin. A reader
// calls Decode. An encoded window stands alone:
//
//	offset  size  field
//	0       1     method: 0 stored, 1 zstd
//	1       ...   body, compressed by the method:
//	              uvarint  number of runs
//	              for each run: uvarint gap since the run before (or the start
//	              of the window), uvarint length - 1
//	              the bytes of the runs
//
// Offsets in a window count from its start, 32 KiB before the boundary. Bytes
// in no run are zero in the decoded window.
//
// Sets and functions may be used in parallel, a Set by one goroutine at a time.
package window

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Size of a window in bytes: how far back deflate can refer.
const Size = 32 << 10

// MaxEncoded bounds an encoded window: the window itself, runs of one byte with
// gaps of one, and the head.
const MaxEncoded = 1 + 3 + 2*(Size/2+1) + Size

const (
	methodStored = 0
	methodZstd   = 1

	// joinGap is the longest gap that is kept as if it were referred to: a run
	// costs about two bytes.
	joinGap = 2
)

// ErrCorrupt is wrapped by the errors for what Encode cannot have made.
var ErrCorrupt = errors.New("corrupt window")

// Set says which bytes of a window are referred to. The zero value is empty.
type Set struct {
	words [Size / 64]uint64
}

// Add marks n bytes, of which the first lies back bytes before the window's end.
// What lies outside of the window is left out.
func (s *Set) Add(back, n int) {
	from := max(Size-back, 0)
	to := min(Size-back+n, Size)
	for from < to {
		word, bit := from/64, from%64
		k := min(64-bit, to-from)
		s.words[word] |= (1<<k - 1) << bit // k == 64: all ones
		from += k
	}
}

// Len is the number of bytes in the set.
func (s *Set) Len() int {
	n := 0
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// Runs is the number of runs of bytes in the set.
func (s *Set) Runs() int {
	n := 0
	carry := uint64(0)
	for _, w := range s.words {
		n += bits.OnesCount64(w &^ (w<<1 | carry))
		carry = w >> 63
	}
	return n
}

// Reset empties the set.
func (s *Set) Reset() { clear(s.words[:]) }

// next finds the first byte from i on that is in the set, or is not; Size if
// there is none.
func (s *Set) next(i int, in bool) int {
	for i < Size {
		w := s.words[i/64]
		if !in {
			w = ^w
		}
		if w >>= i % 64; w != 0 {
			return min(i+bits.TrailingZeros64(w), Size)
		}
		i += 64 - i%64
	}
	return Size
}

// Codecs of zstd keep no state between EncodeAll or DecodeAll calls, but are costly
// to make. An encoder of this level has tables of 1.3 MiB, so idle ones are left to
// the garbage collector; the best level has 34 MiB and saves 3%.
var (
	encoders sync.Pool // of *zstd.Encoder
	decoder  = sync.OnceValues(func() (*zstd.Decoder, error) {
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(MaxEncoded))
	})
)

// compress appends body, compressed, to dst.
func compress(dst, body []byte) ([]byte, error) {
	enc, _ := encoders.Get().(*zstd.Encoder)
	if enc == nil {
		var err error
		enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(64<<10), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, fmt.Errorf("make an encoder: %w", err)
		}
	}
	defer encoders.Put(enc)
	return enc.EncodeAll(body, dst), nil
}

// Encode returns the encoded window: the bytes of window, which are the last
// ones before the boundary and at most Size, that are in the set. An empty set
// gives nil.
func Encode(window []byte, refs *Set) ([]byte, error) {
	missing := Size - len(window)
	if missing < 0 {
		return nil, fmt.Errorf("encode window: %d bytes", len(window))
	}
	var head, data []byte
	runs, last := uint64(0), 0
	for i := refs.next(missing, true); i < Size; {
		end := refs.next(i, false)
		following := refs.next(end, true)
		for following < Size && following-end <= joinGap {
			end = refs.next(following, false)
			following = refs.next(end, true)
		}
		head = binary.AppendUvarint(head, uint64(i-last))
		head = binary.AppendUvarint(head, uint64(end-i-1))
		data = append(data, window[i-missing:end-missing]...)
		runs++
		last = end
		i = following
	}
	if runs == 0 {
		return nil, nil
	}
	body := make([]byte, 1, 8+len(head)+len(data))
	body[0] = methodStored
	body = binary.AppendUvarint(body, runs)
	body = append(body, head...)
	body = append(body, data...)

	packed, err := compress([]byte{methodZstd}, body[1:])
	if err != nil {
		return nil, fmt.Errorf("encode window: %w", err)
	}
	if len(packed) < len(body) {
		return packed, nil
	}
	return body, nil
}

// Decode fills dst, of length Size, with the window that enc holds.
func Decode(dst, enc []byte) error {
	if len(dst) != Size {
		return fmt.Errorf("decode window: into %d bytes", len(dst))
	}
	clear(dst)
	if len(enc) == 0 || len(enc) > MaxEncoded {
		return fmt.Errorf("%w: %d bytes", ErrCorrupt, len(enc))
	}
	body := enc[1:]
	switch enc[0] {
	case methodStored:
	case methodZstd:
		dec, err := decoder()
		if err != nil {
			return fmt.Errorf("decode window: %w", err)
		}
		if body, err = dec.DecodeAll(body, nil); err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	default:
		return fmt.Errorf("%w: method %d", ErrCorrupt, enc[0])
	}
	return fill(dst, body)
}

// fill puts the runs of a body into dst.
func fill(dst, body []byte) error {
	runs, n := binary.Uvarint(body)
	if n <= 0 || runs > Size {
		return fmt.Errorf("%w: number of runs", ErrCorrupt)
	}
	head := body[n:]
	// A first pass finds where the bytes begin.
	data := head
	for range 2 * runs {
		_, n := binary.Uvarint(data)
		if n <= 0 {
			return fmt.Errorf("%w: runs", ErrCorrupt)
		}
		data = data[n:]
	}
	at := uint64(0)
	for range runs {
		gap, n := binary.Uvarint(head)
		length, m := binary.Uvarint(head[n:])
		head = head[n+m:]
		if gap > Size || length >= Size || at+gap+length >= Size || length >= uint64(len(data)) {
			return fmt.Errorf("%w: run of %d bytes after a gap of %d at %d", ErrCorrupt, length+1, gap, at)
		}
		at += gap
		at += uint64(copy(dst[at:], data[:length+1]))
		data = data[length+1:]
	}
	if len(data) != 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrCorrupt, len(data))
	}
	return nil
}
