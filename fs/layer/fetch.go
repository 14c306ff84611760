package layer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/index"
	"golang.org/x/sync/errgroup"
)

// maxTries is how often a span is fetched that turns out not to be what its
// digest says.
const maxTries = 4

// retryDelay is how long a wrong span waits before its second fetch; longer,
// with the square of the number of tries, before the others.
const retryDelay = 100 * time.Millisecond

// run fetches, decodes and stores the spans of a group.
func (l *Layer) run(g *group) {
	defer close(g.done)
	defer g.cancel(nil)
	todo := []extent{g.extent}
	for try := 1; len(todo) > 0; try++ {
		var bad []corruption
		for _, e := range todo {
			b, err := l.fetchExtent(g, e, try)
			if err != nil {
				l.giveUp(g, err)
				return
			}
			bad = append(bad, b...)
		}
		todo = todo[:0]
		for _, b := range bad {
			if try == maxTries {
				err := fmt.Errorf("span %d is wrong, fetched %d times: %w", b.span, try, b.err)
				g.err = err
				l.counters.failed(err)
				l.retire(g.flights[b.span-g.extent.first], err)
				continue
			}
			// By itself: what is wrong with it must not cost the others.
			todo = append(todo, extent{b.span, 1})
		}
		if len(todo) > 0 {
			if err := sleep(g.ctx, retryDelay*time.Duration(try*try)); err != nil {
				l.giveUp(g, err)
				return
			}
		}
	}
}

// sleep waits for d, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// giveUp ends what is left of a group's flights.
func (l *Layer) giveUp(g *group, err error) {
	if g.ctx.Err() != nil && !errors.Is(err, context.Cause(g.ctx)) {
		err = fmt.Errorf("%w: %w", context.Cause(g.ctx), err)
	}
	g.err = err
	l.counters.failed(err)
	for _, f := range g.flights {
		l.retire(f, err)
	}
}

// corruption is a span that was not what the index says.
type corruption struct {
	span int
	err  error
}

// fetchExtent brings the spans of e, in one request for the blob and one for
// the windows, and returns those that were wrong. An error is one of the
// source, or of ctx; the spans that were not delivered are then still missing.
func (l *Layer) fetchExtent(g *group, e extent, try int) ([]corruption, error) {
	spans, err := l.table()
	if err != nil {
		return nil, err
	}
	budget := l.o.Budget
	blobAt, windowsAt := e.blobRange(spans), e.windowRange(spans)
	need := blobAt.size() + windowsAt.size()
	if err := budget.fetch.acquire(g.ctx, need, g.prio); err != nil {
		return nil, err
	}
	defer budget.fetch.release(need)
	blob, windows := budget.pool.get(blobAt.size()), budget.pool.get(windowsAt.size())
	defer blob.free()
	defer windows.free()

	both, ctx := errgroup.WithContext(g.ctx)
	both.Go(func() error { return l.readBlob(ctx, blob.b, blobAt.from) })
	if windowsAt.size() > 0 {
		both.Go(func() error { return l.readWindows(ctx, windows.b, windowsAt.from, try) })
	}
	if err := both.Wait(); err != nil {
		return nil, err
	}
	d := decoding{layer: l, group: g, spans: spans, blob: blob.b, blobAt: blobAt.from, windows: windows.b, windowsAt: windowsAt.from}
	if err := d.all(e); err != nil {
		return nil, err
	}
	l.suspect(d.bad, spans)
	return d.bad, nil
}

func (l *Layer) readBlob(ctx context.Context, p []byte, off int64) error {
	l.counters.requests.Add(1)
	if err := l.o.Blob.ReadAt(ctx, p, off); err != nil {
		return err
	}
	l.counters.fetched.Add(int64(len(p)))
	return nil
}

// readWindows reads from the windows section on disk. Where there is none, or it
// turned out to be wrong at the first try, the source is asked.
func (l *Layer) readWindows(ctx context.Context, p []byte, off int64, try int) error {
	if try == 1 || l.o.Windows == nil {
		if r, err := l.store.Windows(); err == nil {
			if n, _ := r.ReadAt(p, off); n == len(p) {
				return nil
			}
		}
	}
	if l.o.Windows == nil {
		return errNoWindows
	}
	l.counters.requests.Add(1)
	if err := l.o.Windows.ReadAt(ctx, p, off); err != nil {
		return fmt.Errorf("windows: %w", err)
	}
	l.counters.fetched.Add(int64(len(p)))
	return nil
}

// suspect tells the sources what they got wrong.
func (l *Layer) suspect(bad []corruption, spans index.Spans) {
	for _, b := range bad {
		s := &spans[b.span]
		l.counters.corrupt.Add(1)
		l.log.Warn("fetched bytes are wrong", "span", b.span, "err", b.err)
		if src, ok := l.o.Blob.(Suspecter); ok {
			src.Suspect(s.Blob, s.BlobSize)
		}
		if src, ok := l.o.Windows.(Suspecter); ok && s.Window.Size > 0 {
			src.Suspect(s.Window.Off, s.Window.Size)
		}
	}
}

// decoding is the work on the bytes that a request brought.
type decoding struct {
	layer     *Layer
	group     *group
	spans     index.Spans
	blob      []byte
	blobAt    int64 // where blob begins in the blob
	windows   []byte
	windowsAt int64 // where windows begins in the windows section

	mu  sync.Mutex
	bad []corruption
}

// all decodes the spans of e, several at a time.
func (d *decoding) all(e extent) error {
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for i := e.first; i < e.first+e.n; i++ {
		work.Go(func() error { return d.one(i) })
	}
	return work.Wait()
}

// one decodes, verifies, delivers and stores span i.
func (d *decoding) one(i int) error {
	l, s := d.layer, &d.spans[i]
	budget := l.o.Budget
	if err := budget.decode.acquire(d.group.ctx, s.Size, d.group.prio); err != nil {
		return err
	}
	defer budget.decode.release(s.Size)
	buf := budget.pool.get(s.Size)
	var window []byte
	if s.Window.Size > 0 {
		window = d.windows[s.Window.Off-d.windowsAt:][:s.Window.Size]
	}
	err := s.Decode(buf.b, d.blob[s.Blob-d.blobAt:][:s.BlobSize], window)
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
	l.keep(d.group.flights[i-d.group.extent.first], s, buf)
	return nil
}

// keep serves the readers from a verified span, and stores it. It takes over buf.
func (l *Layer) keep(f *flight, s *index.Span, buf *buffer) {
	l.deliver(f, s, buf.b)
	var err error
	stored := !l.store.Present(f.span)
	if stored {
		if err = l.store.WriteSpan(f.span, s.Device, buf.b); err != nil {
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
		l.o.Budget.spares.put(l, f.span, buf)
		l.retire(f, nil)
		return
	}
	l.retire(f, nil)
	buf.free()
	if l.store.AllPresent() && l.completed.CompareAndSwap(false, true) && l.o.Complete != nil {
		l.o.Complete()
	}
}
