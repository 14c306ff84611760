package layer

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// maxTries is how often a span is fetched that turns out not to be what its
// digest says, where no reader waits for it. For one that does it is fetched until
// the reader's deadline: some other source may have it, or the same be mended.
const maxTries = 4

// retryDelay is how long a wrong span waits before its second fetch; longer,
// with the square of the number of tries, before the others.
const retryDelay = 100 * time.Millisecond

// retryMost is the longest of these.
const retryMost = 3 * time.Second

// bring fetches, decodes and stores the spans of a group.
func (l *Layer) bring(g *group) {
	todo, admitted, err := l.begin(g)
	if err != nil {
		l.giveUp(g, err)
		return
	}
	defer func() { admitted.Close() }()
	for try := 1; len(todo) > 0; try++ {
		var bad []corruption
		for _, e := range todo {
			b, err := l.fetchExtent(g, e, try, admitted)
			if err != nil {
				l.giveUp(g, err)
				return
			}
			bad = append(bad, b...)
		}
		admitted.Close()
		todo = todo[:0]
		var wrong error
		for _, b := range bad {
			wrong = fmt.Errorf("span %d is wrong, fetched %d times: %w", b.span, try, b.err)
			if try >= maxTries && (g.urgency.Priority() != line.Demand || l.hopeless(&g.spans[b.span])) {
				g.err = wrong
				l.counters.failed(wrong)
				l.retire(g.flight(b.span), wrong)
				continue
			}
			// By itself: what is wrong with it must not cost the others.
			todo = append(todo, extent{b.span, 1})
		}
		if len(todo) == 0 {
			return
		}
		if err := sleep(g.ctx, pause(try)); err != nil {
			l.giveUp(g, fmt.Errorf("%w: %w", err, wrong))
			return
		}
		// One after the other: what the largest needs is enough.
		if admitted, err = l.admit(g, todo); err != nil {
			l.giveUp(g, err)
			return
		}
	}
}

// hopeless tells whether a wrong span stays wrong: its window, on disk, is the only one.
func (l *Layer) hopeless(s *index.Span) bool { return s.Window.Size > 0 && l.o.Windows == nil }

// pause is how long a wrong span waits after so many tries.
func pause(try int) time.Duration {
	try = min(try, int(retryMost/retryDelay)) // whose square is more than enough
	return min(retryDelay*time.Duration(try*try), retryMost)
}

// begin waits until the group's request may be sent. Until then more urgent readers, and what is
// offered, can take spans out of it; it returns what is left.
func (l *Layer) begin(g *group) ([]extent, *line.Grant, error) {
	if g.pushed {
		select {
		case <-l.o.Push.Over():
		case <-g.ctx.Done():
		}
	}
	if g.ctx.Err() == nil {
		l.wantWindows(g, g.extent)
	}
	admitted, err := l.admit(g, []extent{g.extent})
	l.mu.Lock()
	defer l.mu.Unlock()
	g.begun = true
	if err != nil {
		return nil, admitted, err
	}
	var left []int
	for _, f := range g.flights {
		if f != nil {
			left = append(left, f.span)
		}
	}
	todo := plan(g.spans, left, maxRequest)
	if len(todo) > 1 {
		admitted.Share()
	}
	return todo, admitted, nil
}

// wantWindows begins to fetch all windows, if a request for e needs any of them, and no reader
// waits for it.
func (l *Layer) wantWindows(g *group, e extent) {
	if g.urgency.Priority() > line.Demand && e.windowRange(g.spans).size() > 0 {
		l.keepWindows(g.ctx)
	}
}

// admit waits for what one request for each of the extents, one after the other, needs.
func (l *Layer) admit(g *group, todo []extent) (*line.Grant, error) {
	var need int64
	for _, e := range todo {
		need = max(need, e.blobRange(g.spans).size()+e.windowRange(g.spans).size())
	}
	admitted, err := l.o.Budget.Admit(g.ctx, l.host(), need, g.urgency)
	if len(todo) > 1 {
		admitted.Share()
	}
	return admitted, err
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

// fetchExtent brings the spans of e, in one request for the blob and at most one for the windows,
// and returns those that were wrong. Each is decoded as soon as it is here. An error is one of the
// source, or of ctx; the spans that were not delivered are then still missing.
func (l *Layer) fetchExtent(
	g *group, e extent, try int, admitted *line.Grant,
) ([]corruption, error) {
	work, ctx := errgroup.WithContext(g.ctx)
	d := decoding{group: g}
	if r := e.windowRange(g.spans); r.size() > 0 {
		w, done := l.windowsOf(ctx, r, try)
		defer done()
		d.windows = w
	}
	var ranges []line.Range
	for i := e.first; i < e.first+e.n; i++ {
		s := &g.spans[i]
		ranges = append(ranges, line.Range{Off: s.Blob, Size: s.BlobSize})
	}
	open := func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		return l.open(ctx, l.o.Blob, off, n)
	}
	d.request = admitted.Request(ctx, g.urgency, ranges, open)
	defer d.request.Close()
	work.Go(func() error { return l.receive(ctx, &d, work, e) })
	if err := work.Wait(); err != nil {
		return nil, err
	}
	l.suspect(d.bad, g.spans)
	return d.bad, nil
}

// suspect tells the sources what they got wrong.
func (l *Layer) suspect(bad []corruption, spans index.Spans) {
	for _, b := range bad {
		s := &spans[b.span]
		l.counters.corrupt.Add(1)
		l.log.Warn("fetched bytes are wrong", "span", b.span, "err", b.err)
		l.o.Blob.Suspect(s.Blob, s.BlobSize)
		if l.o.Windows != nil && s.Window.Size > 0 {
			l.o.Windows.Suspect(s.Window.Off, s.Window.Size)
		}
	}
}
