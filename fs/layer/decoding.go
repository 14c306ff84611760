package layer

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/mica-snapshotter/mica/index"
	"golang.org/x/sync/errgroup"
)

// decoding is the work on one request: its body is cut into spans, which are decoded as they come.
type decoding struct {
	layer    *Layer
	group    *group
	spans    index.Spans
	admitted *grant
	windows  *arriving // nil: none is needed

	mu  sync.Mutex
	bad []corruption
}

// receive reads the blob's range of e. Each span whose bytes are here is decoded by work.
func (d *decoding) receive(ctx context.Context, work *errgroup.Group, e extent) error {
	l := d.layer
	at := e.blobRange(d.spans)
	body, err := openLent(ctx, d.admitted, &d.group.claim, func() (io.ReadCloser, error) {
		return l.openBlob(ctx, at.from, at.size(), d.group.claim.priority(), d.admitted.filled)
	})
	if err != nil {
		return err
	}
	defer body.Close()
	pos, last := at.from, byte(0)
	for i := e.first; i < e.first+e.n; i++ {
		s := &d.spans[i]
		if gap := s.Blob - pos; gap > 0 {
			if _, err := io.CopyN(io.Discard, body, gap); err != nil {
				return short(err)
			}
			pos += gap
			d.admitted.arrived(gap)
			d.admitted.done(gap)
		}
		blob := l.o.Budget.pool.get(s.BlobSize)
		rest := blob.b
		if s.Blob < pos {
			// The byte that two spans share; see extent.joins.
			rest[0] = last
			rest = rest[1:]
		}
		n, err := io.ReadFull(body, rest)
		if err != nil {
			blob.free()
			return short(err)
		}
		pos = s.Blob + s.BlobSize
		last = blob.b[s.BlobSize-1]
		d.admitted.arrived(int64(n))
		work.Go(func() error {
			defer d.admitted.done(int64(n))
			defer blob.free()
			return guarded(func() error { return d.one(i, blob.b) })
		})
	}
	return nil
}

// short is the error of a body that ended early.
func short(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// one decodes, verifies, delivers and stores span i, of which all bytes are here.
func (d *decoding) one(i int, blob []byte) error {
	l, s, f := d.layer, &d.spans[i], d.group.flight(i)
	budget := l.o.Budget
	var window []byte
	if s.Window.Size > 0 {
		w, err := d.windows.get(d.group.ctx, s.Window)
		if err != nil {
			return err
		}
		window = w
	}
	if err := budget.decode.acquireFor(d.group.ctx, s.Size, &f.claim); err != nil {
		return err
	}
	defer budget.decode.release(s.Size)
	if err := budget.decoders.acquireFor(d.group.ctx, 1, &f.claim); err != nil {
		return err
	}
	buf := budget.pool.get(s.Size)
	err := l.decode(s, buf.b, blob, window)
	budget.decoders.release(1)
	if err != nil {
		buf.free()
		if !errors.Is(err, index.ErrCorrupt) {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.bad = append(d.bad, corruption{i, err})
		return nil
	}
	l.keep(f, s, buf)
	return nil
}

// keep serves the readers from a verified span, and stores it. It takes over buf.
func (l *Layer) keep(f *flight, s *index.Span, buf *buffer) {
	l.deliver(f, s, buf.b)
	var err error
	stored := !l.store.Present(f.span)
	if stored {
		l.completed.Store(false) // whatever has become of what made it whole before
		err = l.store.WriteSpan(f.span, s.Device, buf.b)
		if err != nil && l.lengthen() {
			err = l.store.WriteSpan(f.span, s.Device, buf.b)
		}
		if err != nil {
			l.counters.failed(err)
			if l.counters.unwritten.Add(1) == 1 {
				l.log.Error("store does not take spans; they are served from memory", "err", err)
			}
			stored = false
		}
	}
	if !stored {
		// A span that is present but came here could not be read back. Writing it again might make
		// a file long again that has lost its end, and turn the rest of what
		// it lost into zeros.
		if err == nil {
			l.repair(f.span, s, buf.b)
		}
		l.o.Budget.spares.put(l, f.span, buf)
		l.retire(f, err)
		return
	}
	l.retire(f, nil)
	buf.free()
	if l.store.AllPresent() && l.completed.CompareAndSwap(false, true) {
		l.section.drop(l.o.Budget)
		l.leaveCopy()
		if l.o.Complete != nil {
			l.o.Complete()
		}
	}
}
