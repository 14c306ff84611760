package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index"
)

// The "trees" blob of a bundle:
//
//	 0  8  magic "MICATREE"
//	 8  4  version, 3 (1 has no form, 2 packs windows' digests)
//	12  4  count of layers
//	16 48  0
//	64     a record of 256 bytes for every layer, then the frames, in the same order
//
// A record:
//
//	  0  72  layer digest (as in the index file)
//	 72  72  diffID
//	144   8  size of the layer's blob
//	152   8  size of the device
//	160   8  size of the index file
//	168  32  sha256 of the index file
//	200   8  frame: offset in this blob
//	208   8  frame: size
//	216   8  windows section: offset in the windows blob
//	224   8  windows section: size of the windows
//	232   8  windows section: size of the content digests of older writers, which follow them
//	240   1  form of the frame: 0 the index file, 1 packed
//	241  15  0
//
// A frame is one zstd frame: of the index file, or of its columns. The "windows" blob is the
// layers' windows sections, one behind the other.
const (
	magic      = "MICATREE"
	version    = 3
	headSize   = 64
	recordSize = 256
	formAt     = 240
	formPacked = 1
)

// maxFrameWindow is the most that a decoder keeps of its output, in bytes; the
// encoder uses less.
const maxFrameWindow = 8 << 20

// Limits bounds what a bundle may demand of its reader. Zero fields have the
// defaults in their comments; the errors wrap ErrLimit and name the fields.
type Limits struct {
	Layers    int   // of one bundle (1000)
	IndexSize int64 // bytes of the index files of all layers, uncompressed (512 MiB: 3.5 million files)
}

// ErrLimit is wrapped by the errors of what asks for more than Limits allows.
var ErrLimit = errors.New("over the limit")

func (l Limits) withDefaults() Limits {
	if l.Layers == 0 {
		l.Layers = 1000
	}
	if l.IndexSize == 0 {
		l.IndexSize = 512 << 20
	}
	return l
}

// Record is what a bundle's table says of one layer.
type Record struct {
	index.Header
	IndexSize   int64             // bytes of the index file
	IndexDigest [sha256.Size]byte // of the index file; of a packed one Extract does not compare it
	Frame       index.Range       // of the compressed index file, in the trees blob
	Packed      bool              // the frame holds columns, of which Extract makes the file
	Windows     index.Range       // of the layer's windows, in the windows blob
	digests     int64             // bytes of content digests behind the windows; older writers'
}

// Bundle is an open trees blob: the indexes of an image's layers.
type Bundle struct {
	r      io.ReaderAt
	layers []Record
}

// Open reads and checks the table of a trees blob of size bytes. The
// layers in it are as good as the blob's origin: what Extract writes is to be
// opened and, unless it was packed or the blob is one that this node made, put through index.Check.
func Open(r io.ReaderAt, size int64, lim Limits) (*Bundle, error) {
	b, err := open(r, size, lim.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	return b, nil
}

func open(r io.ReaderAt, size int64, lim Limits) (*Bundle, error) {
	var head [headSize]byte
	if size < headSize {
		return nil, corrupt("bundle of %d bytes", size)
	}
	if err := readFull(r, head[:], 0); err != nil {
		return nil, err
	}
	if string(head[:8]) != magic {
		return nil, corrupt("not a bundle")
	}
	le := binary.LittleEndian
	if v := le.Uint32(head[8:]); v > version {
		return nil, fmt.Errorf("bundle version %d is newer than this mica understands (%d): upgrade mica", v, version)
	} else if v == 0 {
		return nil, corrupt("version 0")
	}
	count := int64(le.Uint32(head[12:]))
	if count > int64(lim.Layers) {
		return nil, fmt.Errorf("bundle of %d layers: %w of %d (Limits.Layers)", count, ErrLimit,
			lim.Layers)
	}
	if count*recordSize > size-headSize || !allZero(head[16:]) {
		return nil, corrupt("%d layers in a bundle of %d bytes", count, size)
	}
	table := make([]byte, count*recordSize)
	if err := readFull(r, table, headSize); err != nil {
		return nil, err
	}
	b := &Bundle{r: r, layers: make([]Record, count)}
	frame, windows, unpacked := int64(headSize+len(table)), int64(0), int64(0)
	seen := make(map[digest.Digest]bool, count)
	for i := range b.layers {
		l := &b.layers[i]
		if err := l.decode(table[i*recordSize:][:recordSize]); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		switch {
		case l.IndexSize > lim.IndexSize-unpacked:
			return nil, fmt.Errorf("layer %s: index of %d bytes behind %d of other layers: %w of %d (Limits.IndexSize)",
				l.Layer, l.IndexSize, unpacked, ErrLimit, lim.IndexSize)
		case l.Frame.Off != frame || l.Frame.Size <= 0 || l.Frame.Size > size-frame:
			return nil, corrupt("layer %s: frame at %d+%d, not at %d", l.Layer, l.Frame.Off,
				l.Frame.Size, frame)
		case l.Windows.Off != windows:
			return nil, corrupt("layer %s: windows at %d, not at %d", l.Layer, l.Windows.Off,
				windows)
		case seen[l.Layer]:
			return nil, corrupt("layer %s: twice", l.Layer)
		}
		seen[l.Layer] = true
		unpacked += l.IndexSize
		frame += l.Frame.Size
		windows = l.Windows.Off + l.Windows.Size + l.digests
	}
	if frame != size {
		return nil, corrupt("frames end at byte %d of %d", frame, size)
	}
	return b, nil
}

// decode parses a record; what depends on other records is not checked.
func (l *Record) decode(b []byte) error {
	le := binary.LittleEndian
	l.IndexSize = int64(le.Uint64(b[160:]))
	copy(l.IndexDigest[:], b[168:])
	l.Frame = index.Range{Off: int64(le.Uint64(b[200:])), Size: int64(le.Uint64(b[208:]))}
	l.Windows = index.Range{Off: int64(le.Uint64(b[216:])), Size: int64(le.Uint64(b[224:]))}
	var err error
	if l.Header, err = index.ParseNames(b[:index.NamesSize], l.Windows.Size); err != nil {
		return err
	}
	l.digests = int64(le.Uint64(b[232:]))
	const limit = 1 << 50 // so that sums stay far from overflow
	if l.IndexSize < index.HeaderSize || l.Windows.Off < 0 || l.Windows.Off > limit ||
		l.Windows.Size > limit ||
		l.digests < 0 || l.digests > limit || b[formAt] > formPacked || !allZero(b[formAt+1:]) {
		return corrupt("record")
	}
	l.Packed = b[formAt] == formPacked
	return nil
}

// encode appends the record of l.
func (l *Record) encode(b []byte) ([]byte, error) {
	var r [recordSize]byte
	le := binary.LittleEndian
	if _, err := l.AppendNames(r[:0]); err != nil {
		return nil, err
	}
	copy(r[168:], l.IndexDigest[:])
	for at, v := range map[int]int64{
		160: l.IndexSize, 200: l.Frame.Off, 208: l.Frame.Size,
		216: l.Windows.Off, 224: l.Windows.Size, 232: l.digests,
	} {
		le.PutUint64(r[at:], uint64(v))
	}
	if l.Packed {
		r[formAt] = formPacked
	}
	return append(b, r[:]...), nil
}

// Layers returns what the table says of the bundle's layers, in its order.
func (b *Bundle) Layers() []Record { return b.layers }

// Layer returns the layer of the given digest; false if the bundle has none.
func (b *Bundle) Layer(d digest.Digest) (Record, bool) {
	for _, l := range b.layers {
		if l.Layer == d {
			return l, true
		}
	}
	return Record{}, false
}

// Extract writes the index file of a layer to w, or returns an error, with w then holding a part of
// it that is worth nothing. The file has the size, and describes the layer, that the table says.
// Its digest is compared with the table's, unless it was packed: then its sections' are compared
// with those in its header, and the file's would say no more, for a seventh of the time.
//
// It needs about 1 MiB, or 10 MiB for one of an older writer, whatever the file's size; for a
// packed one, which has no more than 65,536 files, about 300 bytes a file, two thirds of which are
// kept for the next one until the second collection of garbage.
func (b *Bundle) Extract(layer digest.Digest, w io.Writer) error {
	l, ok := b.Layer(layer)
	if !ok {
		return fmt.Errorf("extract index of layer %s: not in the bundle", layer)
	}
	if err := b.extract(&l, w); err != nil {
		return fmt.Errorf("extract index of layer %s: %w", layer, err)
	}
	return nil
}

// Spans returns the span table of a layer, checked as Extract and index.Open do. It holds the whole index
// file in memory for that: for tools.
func (b *Bundle) Spans(layer digest.Digest) (index.Spans, error) {
	var file bytes.Buffer
	if err := b.Extract(layer, &file); err != nil {
		return nil, err
	}
	l, err := index.Open(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		return nil, err
	}
	return l.Spans()
}

// frameDecoders are decoders of frames that wait for the next one: an image's layers are extracted
// one after the other.
var frameDecoders = sync.Pool{New: func() any {
	z, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxFrameWindow))
	if err != nil {
		panic(err) // the options are wrong
	}
	return z
}}

func (b *Bundle) extract(l *Record, w io.Writer) error {
	in := &frameReader{r: io.NewSectionReader(b.r, l.Frame.Off, l.Frame.Size)}
	z := frameDecoders.Get().(*zstd.Decoder)
	if err := z.Reset(in); err != nil {
		return err
	}
	defer func() {
		_ = z.Reset(nil) // which has no error, and lets go of in
		frameDecoders.Put(z)
	}()
	in.z = z
	var h *index.FileHeader
	var err error
	if l.Packed {
		h, err = extractPacked(w, readerFunc(in.decode), l.IndexSize)
	} else {
		h, err = extractFile(w, readerFunc(in.decode), l)
	}
	if err != nil {
		return err
	}
	if h.Header != l.Header || h.Digests() != l.digests {
		return corrupt("the index file says other things of its layer than the table")
	}
	return nil
}

// extractPacked writes the index file of size bytes that a packed frame stands for.
func extractPacked(w io.Writer, frame io.Reader, size int64) (*index.FileHeader, error) {
	c, err := readColumns(frame)
	if err != nil {
		return nil, err
	}
	return unpack(w, c, size)
}

// extractFile writes the index file that a frame is.
func extractFile(w io.Writer, frame io.Reader, l *Record) (*index.FileHeader, error) {
	sum, head := sha256.New(), new(bytes.Buffer)
	out := io.MultiWriter(w, sum, &limitedWriter{w: head, left: index.HeaderSize})
	n, err := io.Copy(out, io.LimitReader(frame, l.IndexSize+1))
	if err != nil {
		return nil, err
	}
	if n != l.IndexSize || [sha256.Size]byte(sum.Sum(nil)) != l.IndexDigest {
		return nil, corrupt("frame holds other bytes than the table says")
	}
	return index.DecodeHeader(head.Bytes(), l.IndexSize)
}

// frameReader tells errors of the blob's reader from those of the decoder, which
// mean that the bytes are bad.
type frameReader struct {
	r   io.Reader
	z   *zstd.Decoder
	err error // of r
}

// Read reads compressed bytes, for the decoder.
func (f *frameReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// decode reads decompressed bytes.
func (f *frameReader) decode(p []byte) (int, error) {
	n, err := f.z.Read(p)
	switch {
	case err == nil || errors.Is(err, io.EOF):
	case f.err != nil:
		err = f.err
	default:
		err = corrupt("frame: %v", err)
	}
	return n, err
}

// readerFunc makes an io.Reader of a method.
type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// limitedWriter passes on the first left bytes and drops the rest.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.left -= n
	if _, err := w.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// TreesSize returns the size of the trees blob at the start of r, which has size
// bytes in all: of a file that holds the trees blob and behind it the windows blob.
func TreesSize(r io.ReaderAt, size int64) (int64, error) {
	var head [headSize]byte
	if size < headSize {
		return 0, corrupt("bundle of %d bytes", size)
	}
	if err := readFull(r, head[:], 0); err != nil {
		return 0, err
	}
	if string(head[:8]) != magic {
		return 0, corrupt("not a bundle")
	}
	le := binary.LittleEndian
	count := int64(le.Uint32(head[12:]))
	if count == 0 {
		return headSize, nil
	}
	at := headSize + (count-1)*recordSize
	if at > size-recordSize {
		return 0, corrupt("%d layers in a bundle of %d bytes", count, size)
	}
	var last [recordSize]byte
	if err := readFull(r, last[:], at); err != nil {
		return 0, err
	}
	off, n := int64(le.Uint64(last[200:])), int64(le.Uint64(last[208:]))
	if off < 0 || n < 0 || off > size || n > size-off {
		return 0, corrupt("frame at %d+%d in a bundle of %d bytes", off, n, size)
	}
	return off + n, nil
}
