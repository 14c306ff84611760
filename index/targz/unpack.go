package targz

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/mica-snapshotter/mica/index"
)

// Unpack returns the device's bytes of a layer's blob, from the beginning on. take is told of the
// memory that the decoder keeps, as Limits.Memory is; its error is Unpack's. Errors of the reader
// wrap index.ErrCorrupt where the blob is at fault, and else are those of blob. The caller closes
// the reader, which does not close blob.
func Unpack(blob io.Reader, take func(bytes int64) error) (io.ReadCloser, error) {
	from := &noted{r: blob}
	r := bufio.NewReaderSize(from, 64<<10)
	head, err := r.Peek(zstdHead)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var out io.ReadCloser
	switch {
	case isZstd(head):
		if err := take(min(max(zstdWindow, windowOf(head)), MaxZstdWindow) + zstdTables); err != nil {
			return nil, err
		}
		z, err := newZstd(r, MaxZstdWindow)
		if err != nil {
			return nil, err
		}
		out = z.IOReadCloser()
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, from.explain(err)
		}
		out = z
	default:
		out = io.NopCloser(r)
	}
	return &unpacked{out, from}, nil
}

// unpacked is the reader that Unpack returns.
type unpacked struct {
	io.ReadCloser
	from *noted
}

// Read implements io.Reader.
func (u *unpacked) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = u.from.explain(err)
	}
	return n, err
}

// noted remembers the error of a reader.
type noted struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (n *noted) Read(p []byte) (int, error) {
	m, err := n.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		n.err = err
	}
	return m, err
}

// explain returns what a decoder's error comes of.
func (n *noted) explain(err error) error {
	if n.err != nil {
		return n.err
	}
	return fmt.Errorf("%w: %w", index.ErrCorrupt, err)
}
