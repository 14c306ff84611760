// Package bundle carries the indexes of an image's layers to a registry and back, as two blobs.
// "trees" holds the index files of all layers, compressed, behind one table; "windows" holds what
// is only needed together with data: the decoder windows.
//
//	index files ──Write──▶ trees, windows ── registry ──▶ Open ──Extract──▶ index files
//
// A small index file travels packed: as what it was made of, by kinds of values (see columns),
// which is half as long. Extract makes the file of that with the code that has written it first.
//
// Bytes that come from elsewhere are bounded before memory is taken for them, by Limits and by what
// the blob itself has. A Bundle may be used by any number of goroutines at once.
package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// corrupt returns an error with index.ErrCorrupt in its chain.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", index.ErrCorrupt, fmt.Sprintf(format, args...))
}

// readFull reads len(p) bytes at off. A file that ends before is corrupt.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return corrupt("the bundle ends at byte %d", off+int64(n))
	}
	return fmt.Errorf("read bundle at %d: %w", off, err)
}

// alignUp rounds n up to whole blocks of an index.
func alignUp(n int64) int64 { return (n + erofs.BlockSize - 1) &^ (erofs.BlockSize - 1) }

// allZero says whether b holds zeros only.
func allZero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }
