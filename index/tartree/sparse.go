package tartree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// errSparse is wrapped where a sparse file's map makes no sense.
var errSparse = errors.New("invalid sparse map")

// PAX records of GNU's sparse files, versions 0.0, 0.1 and 1.0. archive/tar turns
// the records of 0.0 into the one of 0.1.
const (
	paxSparseMajor = "GNU.sparse.major"
	paxSparseMinor = "GNU.sparse.minor"
	paxSparseMap   = "GNU.sparse.map"
	paxSize        = "size"
)

// The sparse array in the header of an old GNU sparse file: entries of offset and
// length, 12 bytes each, and a flag for more in a block of their own behind.
const (
	oldSparseAt     = 386
	oldSparseCount  = 4
	oldSparseMoreAt = 482
	oldBlockCount   = 21
	oldBlockMoreAt  = 504
)

// piece is a range of a sparse file that the tar holds, one behind the other.
type piece struct {
	off, size int64
}

// stored says what of an entry's data lies in the stream.
type stored struct {
	size   int64 // bytes
	sparse bool
	pieces []piece // of a sparse file; size is their sum
}

// headerOnly tells the types of entries that have no data, whatever their size
// says.
func headerOnly(typ byte) bool {
	switch typ {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return true
	}
	return false
}

// locate finds the data of the entry whose header archive/tar has just returned.
// Sparse files are told apart as archive/tar does it.
func locate(hdr *tar.Header, t *tape) (stored, error) {
	if headerOnly(hdr.Typeflag) {
		return stored{}, nil
	}
	major, minor := hdr.PAXRecords[paxSparseMajor], hdr.PAXRecords[paxSparseMinor]
	var pieces []piece
	var err error
	switch {
	case hdr.Typeflag == tar.TypeGNUSparse:
		pieces, err = oldSparseMap(t)
	case major == "1" && minor == "0":
		pieces, err = sparseMap1(t.behind)
	case major == "0" && (minor == "0" || minor == "1"), major == "" && minor == "" && hdr.PAXRecords[paxSparseMap] != "":
		pieces, err = sparseMap0(hdr.PAXRecords[paxSparseMap])
	default:
		return stored{size: hdr.Size}, nil
	}
	if err != nil {
		return stored{}, err
	}
	end, held := int64(0), int64(0)
	for _, p := range pieces {
		if p.off < end || p.size < 0 || p.size > hdr.Size-p.off {
			return stored{}, fmt.Errorf("%w: piece of %d bytes at %d of %d", errSparse, p.size, p.off, hdr.Size)
		}
		end = p.off + p.size
		held += p.size
	}
	size, err := storedSize(hdr, t)
	if err == nil && size != held {
		err = fmt.Errorf("%w: pieces of %d bytes, but %d stored", errSparse, held, size)
	}
	return stored{size: size, sparse: true, pieces: pieces}, err
}

func oldSparseMap(t *tape) ([]piece, error) {
	pieces, more, err := oldSparseBlock(nil, t.header[oldSparseAt:], oldSparseCount, t.header[oldSparseMoreAt])
	for b := t.behind; more && err == nil; b = b[erofs.BlockSize:] {
		if len(b) < erofs.BlockSize {
			return nil, fmt.Errorf("%w: cut off", errSparse)
		}
		pieces, more, err = oldSparseBlock(pieces, b, oldBlockCount, b[oldBlockMoreAt])
	}
	return pieces, err
}

func oldSparseBlock(pieces []piece, b []byte, count int, more byte) ([]piece, bool, error) {
	for ; count > 0 && b[0] != 0; count-- {
		off, ok := numeric(b[:12])
		size, ok2 := numeric(b[12:24])
		if !ok || !ok2 {
			return nil, false, fmt.Errorf("%w: not a number", errSparse)
		}
		pieces = append(pieces, piece{off, size})
		b = b[24:]
	}
	return pieces, more > 0, nil
}

// sparseMap0 reads the numbers of versions 0.0 and 0.1: "offset,size,offset,…".
func sparseMap0(list string) ([]piece, error) {
	if list == "" {
		return nil, nil
	}
	pieces := make([]piece, 0, strings.Count(list, ",")/2+1)
	for more := true; more; {
		var off, size string
		off, list, more = strings.Cut(list, ",")
		if !more {
			return nil, fmt.Errorf("%w: an odd number of numbers", errSparse)
		}
		size, list, more = strings.Cut(list, ",")
		p, err := parsePiece(off, size)
		if err != nil {
			return nil, err
		}
		pieces = append(pieces, p)
	}
	return pieces, nil
}

// sparseMap1 reads the map of version 1.0, which lies in blocks of its own before
// the data: the count, then offset and size of each piece, a line each.
func sparseMap1(b []byte) ([]piece, error) {
	line := func() string {
		l, rest, _ := bytes.Cut(b, []byte{'\n'})
		b = rest
		return string(l)
	}
	count, err := strconv.ParseInt(line(), 10, 64)
	if err != nil || count < 0 || count > int64(len(b))/4 {
		return nil, fmt.Errorf("%w: a wrong count", errSparse)
	}
	pieces := make([]piece, 0, count)
	for range count {
		off := line()
		p, err := parsePiece(off, line())
		if err != nil {
			return nil, err
		}
		pieces = append(pieces, p)
	}
	return pieces, nil
}

func parsePiece(off, size string) (piece, error) {
	o, err := strconv.ParseInt(off, 10, 64)
	if err != nil {
		return piece{}, fmt.Errorf("%w: not a number", errSparse)
	}
	s, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return piece{}, fmt.Errorf("%w: not a number", errSparse)
	}
	return piece{o, s}, nil
}

// storedSize returns how many bytes of the stream belong to a sparse entry, without
// the map that archive/tar has read already.
func storedSize(hdr *tar.Header, t *tape) (int64, error) {
	size, ok := numeric(t.header[sizeAt : sizeAt+sizeLen])
	if s := hdr.PAXRecords[paxSize]; s != "" {
		var err error
		size, err = strconv.ParseInt(s, 10, 64)
		ok = err == nil
	}
	if hdr.Typeflag != tar.TypeGNUSparse {
		size -= int64(len(t.behind)) // version 1.0's map is part of the data
	}
	if !ok || size < 0 {
		return 0, fmt.Errorf("%w: invalid size", errSparse)
	}
	return size, nil
}
