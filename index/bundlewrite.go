package index

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// BundleInput is one layer of a bundle that is to be written.
type BundleInput struct {
	Index io.ReaderAt // the index file
	Size  int64       // bytes of it

	// Windows is the layer's windows section, read to its end: Header.WindowsSize bytes, as the
	// scan wrote them, and in an older index the content digests. Nil is an empty section.
	Windows io.Reader
}

// WriteBundle writes the two blobs of an image's indexes. Equal inputs give
// equal blobs. A layer that an image has several times is written once: the
// first input counts. The compressed indexes are kept in memory until all are known, as
// the table with their sizes comes first.
func WriteBundle(trees, windows io.Writer, layers []BundleInput) error {
	w := bundleWriter{windows: windows, seen: make(map[digest.Digest]bool)}
	for i := range layers {
		if err := w.add(&layers[i]); err != nil {
			return fmt.Errorf("write bundle: layer %d: %w", i, err)
		}
	}
	if err := w.finish(trees); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

type bundleWriter struct {
	windows io.Writer
	off     int64 // in the windows blob
	seen    map[digest.Digest]bool
	layers  []BundleLayer
	frames  bytes.Buffer
}

func (w *bundleWriter) add(in *BundleInput) error {
	l, err := Open(in.Index, in.Size)
	if err != nil {
		return err
	}
	h := l.header
	if w.seen[h.Layer] {
		return nil
	}
	w.seen[h.Layer] = true
	if in.Windows == nil {
		in.Windows = bytes.NewReader(nil)
	}
	b := BundleLayer{
		Header:    h.Header,
		IndexSize: in.Size,
		Windows:   Range{Off: w.off, Size: h.WindowsSize},
		digests:   h.section[sectionDigests].Size,
	}
	start := w.frames.Len()
	if b.IndexDigest, b.Packed, err = packIndex(&w.frames, l); err != nil {
		return err
	}
	b.Frame.Size = int64(w.frames.Len() - start)
	n, err := io.CopyN(w.windows, in.Windows, h.WindowsSize+b.digests)
	if errors.Is(err, io.EOF) || err == nil && !atEnd(in.Windows) {
		return fmt.Errorf("windows section of layer %s, after %d bytes: has to be %d bytes: %w",
			h.Layer, n, h.WindowsSize+b.digests, ErrCorrupt)
	}
	if err != nil {
		return err
	}
	w.off += n
	w.layers = append(w.layers, b)
	return nil
}

// atEnd says whether r has no more bytes.
func atEnd(r io.Reader) bool {
	_, err := io.ReadFull(r, make([]byte, 1))
	return err == io.EOF
}

// frameWindow is how far back an encoder looks, at the most. More finds no more in an index, and a
// decoder takes memory for all of it.
const frameWindow = 512 << 10

// packIndex writes the frame of an index file: packed, if that brings back the very same file, and
// returns the file's sha256.
func packIndex(w io.Writer, l *Layer) (sum [sha256.Size]byte, packed bool, err error) {
	file := func() io.Reader { return io.NewSectionReader(l.r, 0, l.header.size) }
	h := sha256.New()
	if _, err := io.Copy(h, file()); err != nil {
		return sum, false, err
	}
	h.Sum(sum[:0])
	c, err := pack(l)
	if err == nil {
		h.Reset()
		if _, err = unpack(h, c, l.header.size); err == nil && [sha256.Size]byte(h.Sum(nil)) == sum {
			return sum, true, compress(w, c.size(), c.write)
		}
	}
	// Too large, or not as Write would make it: from another writer, or corrupt, which whoever
	// reads it sees.
	return sum, false, compress(w, l.header.size, func(z *zstd.Encoder) error {
		_, err := io.Copy(z, file())
		return err
	})
}

// compress writes one zstd frame of what fill writes, about size bytes.
func compress(w io.Writer, size int64, fill func(*zstd.Encoder) error) error {
	window := frameWindow
	for int64(window/2) > max(size, zstd.MinWindowSize) {
		window /= 2
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	if err := fill(z); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}

func (w *bundleWriter) finish(trees io.Writer) error {
	head := make([]byte, bundleHeader, bundleHeader+len(w.layers)*bundleRecord)
	copy(head, bundleMagic)
	binary.LittleEndian.PutUint32(head[8:], bundleVersion)
	binary.LittleEndian.PutUint32(head[12:], uint32(len(w.layers)))
	off := int64(cap(head))
	for i := range w.layers {
		w.layers[i].Frame.Off = off
		off += w.layers[i].Frame.Size
		var err error
		if head, err = w.layers[i].encode(head); err != nil {
			return err
		}
	}
	if _, err := trees.Write(head); err != nil {
		return err
	}
	_, err := w.frames.WriteTo(trees)
	return err
}
