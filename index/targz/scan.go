// Package targz makes the index of a layer that is a tar, plain or in gzip, in
// one streaming pass over the layer's blob.
//
// The data's way, a goroutine for each arrow's end, joined by channels of
// buffers whose number is fixed:
//
//	blob → chunks (hash of the layer) → inflate ─┬→ tartree.Scan (the tree)
//	                                             ├→ Device, hashes of the diffID and the spans
//	                                             └→ Windows, hashes of the windows
//
// The inflating goroutine decides where spans begin. Where the blob is gzip this
// has to be a member or a deflate block. Of those that come about a span's size
// after the last one it takes the one whose span refers to the fewest bytes
// before it (see cutter), so it holds device bytes back from the hashing
// goroutine until it has decided: about half a span.
//
// There is no checkpoint inside of a deflate block: a block longer than a span
// makes a longer span, and one longer than MaxSpan makes the layer unindexable.
// The device is what the gzip members hold, whatever its length: the bytes behind
// the tar's end marker belong to it, and it need not be a multiple of 512.
package targz

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/tartree"
	"golang.org/x/sync/errgroup"
)

// DefaultSpanSize is the span size aimed at, in device bytes.
const DefaultSpanSize = 512 << 10

// MaxSpan is the size of a span, in device bytes, from which on a layer counts as
// unindexable: any read in a span has to fetch and decode what lies before it
// there.
const MaxSpan = 16 << 20

// Bounds of Options.SpanSize.
const (
	minSpanSize = 64 << 10
	maxSpanSize = 4 << 20
)

var (
	// ErrNotIndexable is wrapped by the errors for layers that are right but
	// cannot be indexed by this package.
	ErrNotIndexable = errors.New("layer cannot be indexed")
	// ErrCorrupt is wrapped by the errors for blobs that are no gzip stream, or
	// a truncated one.
	ErrCorrupt = errors.New("corrupt gzip layer")
)

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
	// DeviceSize bounds the device, in bytes; 0: by what an index can address, 2 TiB. A layer of a gigabyte can
	// decompress to a terabyte.
	DeviceSize int64
}

// Scan reads a layer's blob to its end and returns all that an index file
// holds. It keeps a few MiB whatever the layer's size, beside the tree, and
// verifies the checksums of gzip, but compares the digests with nothing: that is
// up to the caller.
//
// Scan ends soon after ctx is cancelled, provided that a Read of blob and the
// writers do. They are not used any more when it returns.
func Scan(ctx context.Context, blob io.Reader, o Options) (*index.Draft, error) {
	return scan(ctx, blob, o, func(r io.Reader) (*index.Node, error) { return tartree.Scan(r, o.Limits) })
}

// scan is Scan with another reader of the tar.
func scan(ctx context.Context, blob io.Reader, o Options, tree func(io.Reader) (*index.Node, error)) (*index.Draft, error) {
	if o.SpanSize == 0 {
		o.SpanSize = DefaultSpanSize
	}
	if o.DeviceSize <= 0 || o.DeviceSize > index.MaxDevice {
		o.DeviceSize = index.MaxDevice
	}
	if o.SpanSize < minSpanSize || o.SpanSize > maxSpanSize {
		return nil, fmt.Errorf("scan layer: span size %d is not between %d and %d", o.SpanSize, minSpanSize, maxSpanSize)
	}
	head := make([]byte, 4)
	n, _, err := readFull(ctx, blob, head)
	if err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
	}
	head = head[:n]
	format, err := sniff(head)
	if err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
	}

	g, ctx := errgroup.WithContext(ctx)
	in := newInput(ctx, io.MultiReader(bytes.NewReader(head), blob))
	out := newOutput(ctx, o)
	var spans []index.Span
	draft := new(index.Draft)
	g.Go(in.run)
	g.Go(func() error {
		// After an error the others end by the context.
		err := format(in, out, o.SpanSize, &spans)
		if err == nil {
			out.close()
		}
		return err
	})
	g.Go(out.runDevice)
	g.Go(out.runWindows)
	g.Go(func() (err error) {
		draft.Root, err = out.runTar(tree)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("scan layer: %w", err)
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

// sniff tells the format as containerd does (its pkg/archive/compression): what
// is neither gzip nor zstd is a tar, an empty blob included.
func sniff(head []byte) (func(*input, *output, int64, *[]index.Span) error, error) {
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}) {
		return gunzip, nil
	}
	if len(head) == 4 {
		// A zstd frame, or a skippable frame (RFC 8878, 3.1).
		magic := binary.LittleEndian.Uint32(head)
		if magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50 {
			return nil, fmt.Errorf("%w: zstd layers are not supported yet", ErrNotIndexable)
		}
	}
	return plain, nil
}

// plain passes an uncompressed tar on, in spans of equal size.
func plain(in *input, out *output, size int64, spans *[]index.Span) error {
	var span index.Span
	buf, err := out.get()
	if err != nil {
		return err
	}
	w := 0
	for {
		src, err := in.more(nil)
		atEnd := errors.Is(err, io.EOF)
		if err != nil && !atEnd {
			return err
		}
		for len(src) > 0 {
			n := copy(buf.data()[w:min(bufferSize, w+int(size-span.Size))], src)
			src = src[n:]
			w += n
			span.Size += int64(n)
			if full := span.Size == size; full || w == bufferSize {
				if err := out.send(piece{buf, buf.data()[:w], full}); err != nil {
					return err
				}
				if buf, err = out.get(); err != nil {
					return err
				}
				w = 0
			}
			if span.Size == size {
				span.BlobSize = size
				*spans = append(*spans, span)
				span = index.Span{Device: span.Device + size, Blob: span.Blob + size}
			}
		}
		if atEnd {
			if span.Size == 0 {
				return nil
			}
			span.BlobSize = span.Size
			*spans = append(*spans, span)
			return out.send(piece{buf, buf.data()[:w], true})
		}
	}
}
