package tartree

import (
	"bytes"
	"io"
	"math"
	"strconv"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Places in a tar header block and type flags, as in POSIX pax and GNU tar.
const (
	sizeAt, sizeLen = 124, 12
	typeAt          = 156

	typePAX           = 'x'
	typePAXGlobal     = 'g'
	typeGNULongName   = 'L'
	typeGNULongTarget = 'K'
)

// maxMap is how much is kept of what archive/tar reads behind a header. Its
// own limit for sparse maps is 1 MiB; the rest is for the block that it
// notices at.
const maxMap = 1<<20 + 8*erofs.BlockSize

// tape is the stream that archive/tar reads from. It counts the bytes, hands the
// data of entries to a sink while archive/tar skips over it, and keeps what
// archive/tar does not tell: the raw header block of the entry, and the
// sparse map that it reads behind that.
//
// It follows the stream's frame by itself: data and padding as announced by
// data(), then header blocks, where those of extension headers are followed by
// their contents, and the first other one ends the entry's headers.
type tape struct {
	r    io.Reader
	off  int64                     // bytes read so far
	sink func(off int64, p []byte) // gets the data bytes; off is the offset in the stream

	dataLeft int64 // bytes of data before the padding
	skipLeft int64 // bytes of padding, or of an extension header's contents

	header  [erofs.BlockSize]byte // the last header block, valid as far as headLen
	headLen int
	behind  []byte // what was read behind the entry's last header block
}

func (t *tape) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		t.feed(p[:n])
	}
	return n, err
}

// data announces n bytes of data: the next bytes of the stream. What follows
// their padding is the next entry.
func (t *tape) data(n int64, sink func(off int64, p []byte)) {
	t.sink = sink
	t.dataLeft = n
	t.skipLeft = -n & (erofs.BlockSize - 1)
	t.headLen = 0
	t.behind = t.behind[:0]
}

func (t *tape) feed(p []byte) {
	for len(p) > 0 {
		var n int
		switch {
		case t.dataLeft > 0:
			n = int(min(t.dataLeft, int64(len(p))))
			t.dataLeft -= int64(n)
			if t.sink != nil {
				t.sink(t.off, p[:n])
			}
		case t.skipLeft > 0:
			n = int(min(t.skipLeft, int64(len(p))))
			t.skipLeft -= int64(n)
		case t.headLen < len(t.header):
			n = copy(t.header[t.headLen:], p)
			if t.headLen += n; t.headLen == len(t.header) {
				t.endHeader()
			}
		default:
			n = len(p)
			if len(t.behind) < maxMap {
				t.behind = append(t.behind, p...)
			}
		}
		p = p[n:]
		t.off += int64(n)
	}
}

func (t *tape) endHeader() {
	switch t.header[typeAt] {
	case typePAX, typePAXGlobal, typeGNULongName, typeGNULongTarget:
		// A size that archive/tar does not accept ends the scan there.
		size, _ := numeric(t.header[sizeAt : sizeAt+sizeLen])
		if size > 0 && size < math.MaxInt64-erofs.BlockSize {
			t.skipLeft = size + (-size & (erofs.BlockSize - 1))
		}
		t.headLen = 0
	}
}

// numeric reads a number of a header block: octal, or GNU's base 256, which
// the field's highest bit tells.
func numeric(b []byte) (int64, bool) {
	if b[0]&0x80 == 0 {
		b, _, _ = bytes.Cut(bytes.Trim(b, " \x00"), []byte{0})
		if len(b) == 0 {
			return 0, true
		}
		n, err := strconv.ParseUint(string(b), 8, 63)
		return int64(n), err == nil
	}
	if b[0] != 0x80 {
		return 0, false // negative, or larger than any size
	}
	var n int64
	for _, c := range b[1:] {
		if n > math.MaxInt64>>8 {
			return 0, false
		}
		n = n<<8 | int64(c)
	}
	return n, true
}
