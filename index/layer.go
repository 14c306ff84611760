package index

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Layer is an open index file. It keeps 1 KiB of the file, and the spans once they were asked for;
// everything else is read when it is needed.
type Layer struct {
	r      io.ReaderAt
	header *FileHeader
	tree   *erofs.Tree
	spans  atomic.Pointer[Spans] // nil until loaded
}

// Open reads and checks the header and the superblock of an index file of size
// bytes. r is used until the last call of any method; closing it is the caller's business.
func Open(r io.ReaderAt, size int64) (*Layer, error) {
	l, err := open(r, size)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return l, nil
}

func open(r io.ReaderAt, size int64) (*Layer, error) {
	var b [HeaderSize]byte
	if err := read(r, b[:], 0); err != nil {
		return nil, err
	}
	h, err := DecodeHeader(b[:], size)
	if err != nil {
		return nil, err
	}
	l := &Layer{r: r, header: h}
	l.tree, err = erofs.Open(r, l.TreeSize(), h.device())
	return l, err
}

// read fills p from off on. What is behind the file's end becomes zeros, which no digest fits.
func read(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n < len(p) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read index at %d: %w", off, err)
	}
	clear(p[n:])
	return nil
}

// Header returns the names and sizes of the layer.
func (l *Layer) Header() Header { return l.header.Header }

// Inodes returns the number of files that the tree says it has.
func (l *Layer) Inodes() int64 { return l.tree.Inodes() }

// Tree returns the layer's tree.
func (l *Layer) Tree() *erofs.Tree { return l.tree }

// TreeSize returns how many bytes from the start of the file on are the EROFS image.
func (l *Layer) TreeSize() int64 { return HeaderSize + l.header.section[sectionTree].Size }

// Spans returns the layer's span table: in order, covering the device, inside
// the blob. It is loaded and checked at the first call, and again after an error;
// calls that come at the same time may each load it.
func (l *Layer) Spans() (Spans, error) {
	if s := l.spans.Load(); s != nil {
		return *s, nil
	}
	b, err := l.load(sectionSpans)
	if err != nil {
		return nil, fmt.Errorf("spans of layer %s: %w", l.header.Layer, err)
	}
	s, err := decodeSpans(b, &l.header.Header)
	if err != nil {
		return nil, fmt.Errorf("spans of layer %s: %w", l.header.Layer, err)
	}
	l.spans.Store(&s)
	return s, nil
}

// load reads a section, whose size the header has bounded by the file's, and
// checks its digest.
func (l *Layer) load(i int) ([]byte, error) {
	s := &l.header.section[i]
	b := make([]byte, s.Size)
	if err := read(l.r, b, s.Off); err != nil {
		return nil, err
	}
	if sha256.Sum256(b) != s.sum {
		return nil, corrupt("digest of section %d", i)
	}
	return b, nil
}

// Verify reads the whole file and compares it with the digests in its header:
// is it still what was written? Whether that was sane, Check says.
func (l *Layer) Verify(ctx context.Context) error {
	buf := make([]byte, 256<<10)
	for i, s := range l.header.section[:sectionDigests] {
		sum := sha256.New()
		for off, end := s.Off, s.Off+s.Size; off < end; {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("verify index of layer %s: %w", l.header.Layer, err)
			}
			p := buf[:min(end-off, int64(len(buf)))]
			if err := read(l.r, p, off); err != nil {
				return fmt.Errorf("verify index of layer %s: %w", l.header.Layer, err)
			}
			sum.Write(p)
			off += int64(len(p))
		}
		if [sha256.Size]byte(sum.Sum(nil)) != s.sum {
			return fmt.Errorf("verify index of layer %s: %w", l.header.Layer,
				corrupt("digest of section %d", i))
		}
	}
	return nil
}

// Implicit returns the nids of the directories that the layer's tar does not
// mention, in rising order.
func (l *Layer) Implicit() ([]uint64, error) {
	b, err := l.load(sectionImplicit)
	if err != nil {
		return nil, fmt.Errorf("implicit directories of layer %s: %w", l.header.Layer, err)
	}
	nids := make([]uint64, len(b)/8)
	for i := range nids {
		nids[i] = binary.LittleEndian.Uint64(b[i*8:])
		if nids[i] == 0 || i > 0 && nids[i] <= nids[i-1] {
			return nil, fmt.Errorf("implicit directories of layer %s: %w", l.header.Layer, corrupt("order"))
		}
	}
	return nids, nil
}
