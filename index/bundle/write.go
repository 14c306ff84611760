package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index"
)

// Input is one layer of a bundle that is to be written.
type Input struct {
	Index io.ReaderAt // the index file
	Size  int64       // bytes of it

	// Windows is the layer's windows section, read to its end: Header.WindowsSize bytes, as the
	// scan wrote them, and in an older index the content digests. Nil is an empty section.
	Windows io.Reader
}

// Write writes the two blobs of an image's indexes. Equal inputs give
// equal blobs. A layer that an image has several times is written once: the
// first input counts. The compressed indexes are kept in memory until all are known, as
// the table with their sizes comes first.
func Write(trees, windows io.Writer, layers []Input) error {
	w := writer{windows: windows, seen: make(map[digest.Digest]bool)}
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

type writer struct {
	windows io.Writer
	off     int64 // in the windows blob
	seen    map[digest.Digest]bool
	layers  []Record
	frames  bytes.Buffer
	encoder encoder
}

func (w *writer) add(in *Input) error {
	l, err := index.Open(in.Index, in.Size)
	if err != nil {
		return err
	}
	header := make([]byte, index.HeaderSize)
	if err := readFull(in.Index, header, 0); err != nil {
		return err
	}
	h, err := index.DecodeHeader(header, in.Size)
	if err != nil {
		return err
	}
	if w.seen[h.Layer] {
		return nil
	}
	w.seen[h.Layer] = true
	if in.Windows == nil {
		in.Windows = bytes.NewReader(nil)
	}
	b := Record{
		Header:    h.Header,
		IndexSize: in.Size,
		Windows:   index.Range{Off: w.off, Size: h.WindowsSize},
		digests:   h.Digests(),
	}
	start := w.frames.Len()
	if b.IndexDigest, b.Packed, err = w.frameOf(in, header, l); err != nil {
		return err
	}
	b.Frame.Size = int64(w.frames.Len() - start)
	n, err := io.CopyN(w.windows, in.Windows, h.WindowsSize+b.digests)
	if errors.Is(err, io.EOF) || err == nil && !atEnd(in.Windows) {
		return fmt.Errorf("windows section of layer %s, after %d bytes: has to be %d bytes: %w",
			h.Layer, n, h.WindowsSize+b.digests, index.ErrCorrupt)
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

// smallWindow is the least window of an encoder, so that most small frames have the same.
const smallWindow = 32 << 10

// frameOf writes the frame of an index file, which has the given header and is open as l: packed, if
// that brings back the very same file. It returns the file's sha256.
func (w *writer) frameOf(in *Input, header []byte, l *index.Layer) (
	sum [sha256.Size]byte, packed bool, err error,
) {
	file := func() io.Reader { return io.NewSectionReader(in.Index, 0, in.Size) }
	h := sha256.New()
	if _, err := io.Copy(h, file()); err != nil {
		return sum, false, err
	}
	h.Sum(sum[:0])
	c, err := pack(header, l)
	if err == nil {
		h.Reset()
		if _, err = unpack(h, c, in.Size); err == nil && [sha256.Size]byte(h.Sum(nil)) == sum {
			return sum, true, w.encoder.compress(&w.frames, c.size(), c.write)
		}
	}
	// Too large, or not as Write would make it: from another writer, or corrupt, which whoever
	// reads it sees.
	return sum, false, w.encoder.compress(&w.frames, in.Size, func(z *zstd.Encoder) error {
		_, err := io.Copy(z, file())
		return err
	})
}

// encoder writes frames one after another. It keeps the encoder of the last frame for one with the
// same window, because a new one begins with 34 MB of zeros.
type encoder struct {
	zstd   *zstd.Encoder
	window int // of zstd
}

// compress writes one zstd frame of what fill writes, about size bytes.
func (e *encoder) compress(w io.Writer, size int64, fill func(*zstd.Encoder) error) (err error) {
	window := frameWindow
	for int64(window/2) > max(size, smallWindow) {
		window /= 2
	}
	if e.window == window {
		e.zstd.Reset(w)
	} else {
		e.zstd, err = zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(window), zstd.WithEncoderCRC(false))
		if err != nil {
			return err
		}
		e.window = window
	}
	if err := fill(e.zstd); err != nil {
		e.zstd.Close()
		return err
	}
	return e.zstd.Close()
}

func (w *writer) finish(trees io.Writer) error {
	head := make([]byte, headSize, headSize+len(w.layers)*recordSize)
	copy(head, magic)
	binary.LittleEndian.PutUint32(head[8:], version)
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
