package targz

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/index/window"
)

const (
	bufferSize = 256 << 10
	// queued is how many buffers can wait for one of the goroutines that use
	// them, beside those that the cutter holds back.
	queued = 4
	// heldSlack is how many buffers the inflating goroutine holds beyond the
	// range in which it looks for a cut: the one being filled, one that
	// only ends in the range, one to see that the range is over, and one for
	// rounding.
	heldSlack = 4
)

// buffer is a stretch of the device behind a window's length of history.
type buffer struct {
	mem  [window.Size + bufferSize]byte
	refs atomic.Int32
}

func (b *buffer) data() []byte { return b.mem[window.Size:] }

// piece is a stretch of the device on its way to be hashed and scanned.
type piece struct {
	buf  *buffer
	data []byte
	cut  bool // a span ends behind it
}

// output is the side of a scan that uses the device's bytes: one goroutine
// builds the tree, one hashes, one encodes windows.
type output struct {
	ctx     context.Context
	free    chan *buffer
	tar     chan piece
	device  chan piece
	windows chan *candidate
	o       Options

	// Each is owned by its goroutine until that has returned.
	hash        hash.Hash
	size        int64
	digests     [][sha256.Size]byte
	ranges      []index.Range // the windows' places in their section
	windowsSize int64
}

func newOutput(ctx context.Context, o Options) *output {
	n := int((maxSpan(o.SpanSize)-minSpan(o.SpanSize)+window.Size)/bufferSize) + heldSlack + queued
	out := &output{
		ctx:     ctx,
		o:       o,
		hash:    sha256.New(),
		free:    make(chan *buffer, n),
		tar:     make(chan piece, n),
		device:  make(chan piece, n),
		windows: make(chan *candidate, queued),
	}
	for range n {
		out.free <- nil // made at first use: most layers are small
	}
	return out
}

// get waits for a buffer that nobody uses.
func (out *output) get() (*buffer, error) {
	b, err := receive(out.ctx, out.free)
	if err != nil {
		return nil, err
	}
	if b == nil {
		b = new(buffer)
	}
	b.refs.Store(1)
	return b, nil
}

// put gives up a use of a buffer.
func (out *output) put(b *buffer) {
	if b.refs.Add(-1) == 0 {
		out.free <- b // never blocks: it has room for all buffers
	}
}

// send passes a piece to both users and gives up the caller's use of the buffer.
func (out *output) send(p piece) error {
	p.buf.refs.Add(1)
	if err := send(out.ctx, out.tar, piece{p.buf, p.data, false}); err != nil {
		return err
	}
	return send(out.ctx, out.device, p)
}

// sendWindow passes on the candidate at which a span begins, one for each span in
// order; nil for the first.
func (out *output) sendWindow(c *candidate) error { return send(out.ctx, out.windows, c) }

// close says that all has been sent.
func (out *output) close() {
	close(out.tar)
	close(out.device)
	close(out.windows)
}

// runDevice hashes the device and its spans and writes it to Device.
func (out *output) runDevice() error {
	span := sha256.New()
	for {
		p, err := receive(out.ctx, out.device)
		if err != nil {
			return ended(err)
		}
		if int64(len(p.data)) > out.o.DeviceSize-out.size {
			return fmt.Errorf("uncompressed layer: %w of %d bytes (Options.DeviceSize)", tartree.ErrLimit, out.o.DeviceSize)
		}
		if out.o.Device != nil {
			if _, err := out.o.Device.Write(p.data); err != nil {
				return fmt.Errorf("write device at %d: %w", out.size, err)
			}
		}
		out.size += int64(len(p.data))
		out.hash.Write(p.data)
		span.Write(p.data)
		if p.cut {
			out.digests = append(out.digests, [sha256.Size]byte(span.Sum(nil)))
			span.Reset()
		}
		out.put(p.buf)
	}
}

// runWindows encodes the spans' windows and writes them to Windows.
func (out *output) runWindows() error {
	for {
		c, err := receive(out.ctx, out.windows)
		if err != nil {
			return ended(err)
		}
		if c == nil || c.member {
			out.ranges = append(out.ranges, index.Range{})
			continue
		}
		enc, err := window.Encode(c.window[:c.n], &c.refs)
		if err != nil {
			return err
		}
		if len(enc) == 0 {
			out.ranges = append(out.ranges, index.Range{})
			continue
		}
		out.ranges = append(out.ranges, index.Range{Off: out.windowsSize, Size: int64(len(enc))})
		out.windowsSize += int64(len(enc))
		if out.o.Windows != nil {
			if _, err := out.o.Windows.Write(enc); err != nil {
				return fmt.Errorf("write windows: %w", err)
			}
		}
	}
}

// runTar has the tree made, and reads what lies behind the tar's end marker.
func (out *output) runTar(tree func(io.Reader) (*erofs.Node, error)) (*erofs.Node, error) {
	r := &tarReader{out: out}
	root, err := tree(r)
	switch {
	case err == nil:
	case out.ctx.Err() != nil, errors.Is(err, tartree.ErrLimit), errors.Is(err, tartree.ErrMemory):
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	for {
		if err := r.next(); err != nil {
			return root, ended(err)
		}
	}
}

// describe fills in what the goroutines found out about the spans.
func (out *output) describe(spans []index.Span) {
	for i := range spans {
		spans[i].Digest = out.digests[i]
		if i < len(out.ranges) && spans[i].Codec != index.FromStart {
			spans[i].Window = out.ranges[i]
		}
	}
}

func (out *output) diffID() digest.Digest { return digest.NewDigest(digest.SHA256, out.hash) }

// tarReader reads the device for the tree.
type tarReader struct {
	out *output
	p   piece
}

// next gives up the piece at hand and waits for another one; io.EOF behind the last.
func (r *tarReader) next() error {
	if r.p.buf != nil {
		r.out.put(r.p.buf)
		r.p = piece{}
	}
	var err error
	r.p, err = receive(r.out.ctx, r.out.tar)
	return err
}

func (r *tarReader) Read(p []byte) (int, error) {
	for len(r.p.data) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.p.data)
	r.p.data = r.p.data[n:]
	return n, nil
}
