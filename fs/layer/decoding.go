package layer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
	"golang.org/x/sync/errgroup"
)

// decoding is the work on one request: its bytes are decoded span by span, as they come.
type decoding struct {
	layer   *Layer
	group   *group
	request *line.Request
	windows *line.Request // nil: there are none

	mu  sync.Mutex
	bad []corruption
}

// receive waits for the spans of e, one after the other. Each that is here is decoded by work.
func (d *decoding) receive(ctx context.Context, work *errgroup.Group, e extent) error {
	ctx = context.WithoutCancel(ctx) // the source, which ends with it, says what was wrong
	for i := e.first; i < e.first+e.n; i++ {
		s, f := &d.group.spans[i], d.group.flight(i)
		blob, err := d.request.Get(ctx, s.Blob, s.BlobSize)
		if err != nil {
			return err
		}
		work.Go(func() error {
			return line.Guarded(func() error { return d.one(f, s, blob) })
		})
	}
	return nil
}

// one decodes, verifies, delivers and stores a span, of which all bytes are here.
func (d *decoding) one(f *flight, s *index.Span, blob []byte) error {
	l, budget := d.layer, d.layer.o.Budget
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
	if err := budget.Decode.Acquire(d.group.ctx, s.Size, f.claim); err != nil {
		return err
	}
	defer budget.Decode.Release(s.Size)
	if err := budget.Decoders.Acquire(d.group.ctx, 1, f.claim); err != nil {
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

// keep serves the readers from a verified span, and stores it. It takes over buf.
func (l *Layer) keep(f *flight, s *index.Span, buf *line.Buffer) {
	l.deliver(f, s, buf.B)
	if !l.store.Present(f.span) {
		l.completed.Store(false) // whatever has become of what made it whole before
	}
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
	if l.store.AllPresent() && l.completed.CompareAndSwap(false, true) {
		l.section.drop(l.o.Budget)
		if l.o.Complete != nil {
			l.o.Complete()
		}
	}
}
