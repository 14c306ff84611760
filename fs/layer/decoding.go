package layer

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
	"golang.org/x/sync/errgroup"
)

// decoding is the work on one request: its body is cut into spans, which are decoded as they come.
type decoding struct {
	layer    *Layer
	group    *group
	spans    index.Spans
	admitted *line.Grant
	windows  *line.Arriving // nil: none is needed

	mu  sync.Mutex
	bad []corruption
}

// receive reads the blob's range of e. Each span whose bytes are here is decoded by work.
func (d *decoding) receive(ctx context.Context, work *errgroup.Group, e extent) error {
	l := d.layer
	at := e.blobRange(d.spans)
	body, err := d.admitted.Open(ctx, d.group.claim, at.from, at.size(), l.openBlob)
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
			d.admitted.Arrived(gap)
			d.admitted.Done(gap)
		}
		blob := l.o.Budget.Buffer(s.BlobSize)
		rest := blob.B
		if s.Blob < pos {
			// The byte that two spans share; see extent.joins.
			rest[0] = last
			rest = rest[1:]
		}
		n, err := io.ReadFull(body, rest)
		if err != nil {
			blob.Free()
			return short(err)
		}
		pos = s.Blob + s.BlobSize
		last = blob.B[s.BlobSize-1]
		d.admitted.Arrived(int64(n))
		work.Go(func() error {
			defer d.admitted.Done(int64(n))
			defer blob.Free()
			return line.Guarded(func() error { return d.one(i, blob.B) })
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
		w, err := d.windows.Get(d.group.ctx, s.Window.Off, s.Window.Size)
		if err != nil {
			return err
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
		d.bad = append(d.bad, corruption{i, err})
		return nil
	}
	l.keep(f, s, buf)
	return nil
}

// keep serves the readers from a verified span, and stores it. It takes over buf.
func (l *Layer) keep(f *flight, s *index.Span, buf *line.Buffer) {
	l.deliver(f, s, buf.B)
	var err error
	stored := !l.store.Present(f.span)
	if stored {
		l.completed.Store(false) // whatever has become of what made it whole before
		err = l.store.WriteSpan(f.span, s.Device, buf.B)
		if err != nil && l.lengthen() {
			err = l.store.WriteSpan(f.span, s.Device, buf.B)
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
			l.repair(f.span, s, buf.B)
		}
		l.o.Budget.Spares.Put(l, f.span, buf)
		l.retire(f, err)
		return
	}
	l.retire(f, nil)
	buf.Free()
	if l.store.AllPresent() && l.completed.CompareAndSwap(false, true) {
		l.section.drop(l.o.Budget)
		l.leaveCopy()
		if l.o.Complete != nil {
			l.o.Complete()
		}
	}
}
