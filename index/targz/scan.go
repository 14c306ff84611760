// Package targz makes the index of a layer that is a tar, plain, in gzip or in zstd, in
// one streaming pass over the layer's blob.
//
// The data's way, a goroutine for each arrow's end, joined by channels of
// buffers whose number is fixed:
//
//	blob → chunks (hash of the layer) → decode ──┬→ tartree.Scan (the tree)
//	                                             ├→ Device, hashes of the diffID and the spans
//	                                             └→ Windows, hashes of the windows
//
// What decodes is told by the blob's first six bytes (sniff): gunzip, unzstd or plain, each of which
// takes the input to the output and appends to the spans. Where a format can be cut anywhere, evenly
// cuts it. Unpack decodes a whole blob again, for layers whose spans are index.FromStart; it looks
// at the first bytes by itself.
//
// The decoding goroutine decides where spans begin. Where the blob is gzip this
// has to be a member or a deflate block. Of those that come about a span's size
// after the last one it takes the one whose span refers to the fewest bytes
// before it (see cutter), so it holds device bytes back from the hashing
// goroutine until it has decided: about half a span.
//
// There is no checkpoint inside of a deflate block: a block longer than a span
// makes a longer span. Where one is longer than MaxSpan, and in zstd, no place is known from
// which on a span can be decoded: the layer has to be fetched whole (Options.Whole).
// The device is what the gzip members hold, whatever its length: the bytes behind
// the tar's end marker belong to it, and it need not be a multiple of 512.
package targz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
)

// DefaultSpanSize is the span size aimed at, in device bytes.
const DefaultSpanSize = 512 << 10

// MaxSpan is the size of a span, in device bytes, from which on a layer counts as
// unindexable: any read in a span has to fetch and decode what lies before it
// there.
const MaxSpan = 16 << 20

// Bounds of Options.SpanSize.
const (
	MinSpanSize = 64 << 10
	MaxSpanSize = 4 << 20
)

var (
	// ErrNotIndexable is wrapped by the errors for layers that are right but
	// cannot be indexed by this package.
	ErrNotIndexable = errors.New("layer cannot be indexed")
	// ErrCorrupt is wrapped by the errors for blobs that are no tar, or no stream of their
	// compression, or a truncated one. Such an error is a *Malformed as well, unless the rest of
	// the blob could not be read.
	ErrCorrupt = errors.New("malformed layer")
)

// Malformed is the error for a blob that is no layer, of which all has been read: who knows the
// digest that the blob should have can tell a layer that was built wrong from bytes that were sent
// wrong.
type Malformed struct {
	Layer digest.Digest // of the blob
	Err   error
}

// Error implements error.
func (m *Malformed) Error() string { return m.Err.Error() }

// Unwrap returns what is wrong with the blob.
func (m *Malformed) Unwrap() error { return m.Err }

// Panic is the error of a scan in which the blob has found a fault of this program.
type Panic struct {
	Value any
	Stack []byte
}

// Error implements error.
func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// Options of a scan. The zero value is ready to use.
type Options struct {
	// SpanSize is the size of spans aimed at in device bytes, 64 KiB to 4 MiB;
	// 0 stands for DefaultSpanSize.
	SpanSize int64
	// Device receives the device's bytes, in order; nil: nobody.
	Device io.Writer
	// Windows receives the windows section; nil: nobody.
	Windows io.Writer
	Limits  tartree.Limits
	// DeviceSize bounds the device, in bytes; 0: by what an index can address, 2 TiB. A layer of a
	// gigabyte can decompress to a terabyte.
	DeviceSize int64
	// Whole: a layer in which no places are found from which on spans can be decoded is taken all
	// the same, with spans that are index.FromStart. False: its error wraps ErrNotIndexable.
	Whole bool
	// Window is the largest window of zstd that is taken in any case; 0: zstdWindow. Larger ones
	// are taken, up to MaxZstdWindow, where the blob's first frame tells of them.
	Window int64
}

// Scan reads a layer's blob to its end and returns all that an index file
// holds. It keeps a few MiB whatever the layer's size, beside the tree and a window of zstd, of
// which Limits.Memory is told. It verifies the checksums of gzip and zstd, but compares the digests
// with nothing: that is up to the caller.
//
// Scan ends soon after ctx is cancelled, provided that a Read of blob and the
// writers do. They are not used any more when it returns.
func Scan(ctx context.Context, blob io.Reader, o Options) (*index.Draft, error) {
	return scan(ctx, blob, o, func(r io.Reader) (*erofs.Node, error) {
		return tartree.Scan(r, o.Limits)
	})
}

// scan is Scan with another reader of the tar.
func scan(ctx context.Context, blob io.Reader, o Options,
	tree func(io.Reader) (*erofs.Node, error),
) (*index.Draft, error) {
	if o.SpanSize == 0 {
		o.SpanSize = DefaultSpanSize
	}
	if o.DeviceSize <= 0 || o.DeviceSize > erofs.MaxDevice {
		o.DeviceSize = erofs.MaxDevice
	}
	if o.SpanSize < MinSpanSize || o.SpanSize > MaxSpanSize {
		return nil, fmt.Errorf("scan layer: span size %d is not between %d and %d", o.SpanSize,
			MinSpanSize, MaxSpanSize)
	}
	head := make([]byte, 6)
	n, _, err := readFull(ctx, blob, head)
	if err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
	}
	head = head[:n]
	format, err := sniff(head)
	if err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
	}

	g, scanCtx := errgroup.WithContext(ctx)
	in := newInput(scanCtx, io.MultiReader(bytes.NewReader(head), blob))
	out := newOutput(scanCtx, o)
	var spans []index.Span
	draft := new(index.Draft)
	run := func(f func() error) { g.Go(func() error { return survive(f) }) }
	run(in.run)
	run(func() error {
		// After an error the others end by the context.
		err := format(in, out, &spans)
		if err == nil {
			out.close()
		}
		return err
	})
	run(out.runDevice)
	run(out.runWindows)
	run(func() (err error) {
		draft.Root, err = out.runTar(tree)
		return err
	})
	if err := g.Wait(); err != nil {
		err = fmt.Errorf("scan layer: %w", err)
		if errors.Is(err, ErrCorrupt) {
			err = in.blame(ctx, err)
		}
		return nil, err
	}

	out.describe(spans)
	draft.Spans = spans
	draft.Header = index.Header{
		Layer:       in.digest(),
		LayerSize:   in.size,
		DiffID:      out.diffID(),
		DeviceSize:  out.size,
		WindowsSize: out.windowsSize,
	}
	return draft, nil
}

// survive makes an error of a panic of f.
func survive(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %w", ErrCorrupt, &Panic{Value: v, Stack: debug.Stack()})
		}
	}()
	return f()
}

// format is the goroutine of a scan that decodes the blob and decides where spans begin.
type format func(*input, *output, *[]index.Span) error

// sniff tells the format as containerd does (its pkg/archive/compression), by the blob alone: what
// is neither gzip nor zstd is a tar, an empty blob included.
func sniff(head []byte) (format, error) {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		return gunzip, nil
	case isZstd(head):
		return unzstd, nil
	}
	for magic, name := range foreign {
		if bytes.HasPrefix(head, []byte(magic)) {
			return nil, fmt.Errorf("%w: it is in %s", ErrNotIndexable, name)
		}
	}
	return plain, nil
}

// foreign is how blobs begin in compressions that no layer of an image may have, where no tar
// begins so. Nothing more of them need be read.
var foreign = map[string]string{
	"\xfd7zXZ\x00":     "xz",
	"\x04\x22\x4d\x18": "lz4",
}

// plain passes an uncompressed tar on.
func plain(in *input, out *output, spans *[]index.Span) error {
	return evenly(&blobReader{in: in}, out, index.Stored, spans)
}

// evenly passes on a tar that comes by itself, in spans of equal size.
func evenly(tar io.Reader, out *output, codec index.Codec, spans *[]index.Span) error {
	size := out.o.SpanSize
	span := index.Span{Codec: codec}
	for {
		buf, err := out.get()
		if err != nil {
			return err
		}
		data := buf.data()[:min(bufferSize, size-span.Size)]
		n, atEnd, err := readFull(out.ctx, tar, data)
		if err != nil {
			return err
		}
		span.Size += int64(n)
		if span.Size == 0 {
			return nil
		}
		cut := atEnd || span.Size == size
		if err := out.send(piece{buf, data[:n], cut}); err != nil {
			return err
		}
		if cut {
			if codec == index.Stored {
				span.Blob, span.BlobSize = span.Device, span.Size
			}
			*spans = append(*spans, span)
			span = index.Span{Device: span.Device + span.Size, Codec: codec}
		}
		if atEnd {
			return nil
		}
	}
}

// blobReader reads the blob of an input.
type blobReader struct {
	in  *input
	src []byte
}

// Read implements io.Reader.
func (r *blobReader) Read(p []byte) (int, error) {
	for len(r.src) == 0 {
		var err error
		if r.src, err = r.in.more(nil); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.src)
	r.src = r.src[n:]
	return n, nil
}
