package layer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// decoding is the work on one request: its bytes are decoded span by span, as they come.
type decoding struct {
	group   *group
	request *line.Request
	windows *line.Request // nil: there are none

	mu  sync.Mutex
	bad []corruption
}

// corruption is a span that was not what the index says.
type corruption struct {
	span int
	err  error
}

// receive waits for the spans of e, one after the other. Each that is here is decoded by work.
func (l *Layer) receive(ctx context.Context, d *decoding, work *errgroup.Group, e extent) error {
	ctx = context.WithoutCancel(ctx) // the source, which ends with it, says what was wrong
	for i := e.first; i < e.first+e.n; i++ {
		s, f := &d.group.spans[i], d.group.flight(i)
		blob, err := d.request.Get(ctx, s.Blob, s.BlobSize)
		if err != nil {
			return err
		}
		work.Go(func() error {
			return line.Guarded(func() error { return l.decodeSpan(d, f, s, blob) })
		})
	}
	return nil
}

// decodeSpan decodes, verifies, delivers and stores a span, of which all bytes are here.
func (l *Layer) decodeSpan(d *decoding, f *flight, s *index.Span, blob []byte) error {
	budget := l.o.Budget
	var window []byte
	if s.Window.Size > 0 {
		if d.windows == nil {
			return errNoWindows
		}
		w, err := d.windows.Get(d.group.ctx, s.Window.Off, s.Window.Size)
		if err != nil {
			return fmt.Errorf("windows: %w", err)
		}
		window = w
	}
	if err := budget.Decode.Acquire(d.group.ctx, s.Size, f.urgency); err != nil {
		return err
	}
	defer budget.Decode.Release(s.Size)
	if err := budget.Decoders.Acquire(d.group.ctx, 1, f.urgency); err != nil {
		return err
	}
	buf := budget.Buffer(s.Size)
	err := l.decode(s, buf.B, blob, window)
	budget.Decoders.Release(1)
	if err != nil {
		buf.Free()
		if !errors.Is(err, index.ErrCorrupt) {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.bad = append(d.bad, corruption{f.span, err})
		return nil
	}
	l.keep(f, s, buf)
	return nil
}

// decode is Span.Decode; a panic counts as what the bytes are not.
func (l *Layer) decode(s *index.Span, dst, blob, window []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			l.log.Error("panic in a decoder", "span", s.Device, "panic", v,
				"stack", string(debug.Stack()))
			err = fmt.Errorf("%w: panic: %v", index.ErrCorrupt, v)
		}
	}()
	return s.Decode(dst, blob, window)
}

// keep serves the readers from a verified span, and stores it. It takes over buf.
func (l *Layer) keep(f *flight, s *index.Span, buf *line.Buffer) {
	l.deliver(f, s, buf.B)
	stored, err := l.store.Put(f.span, buf.B)
	if err != nil {
		l.counters.failed(err)
		if l.counters.unwritten.Add(1) == 1 {
			l.log.Error("store does not take spans; they are served from memory", "err", err)
		}
	}
	if !stored {
		l.o.Budget.Spares.Put(l, f.span, buf)
		l.retire(f, err)
		return
	}
	l.retire(f, nil)
	buf.Free()
}
