package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/store"
)

// grace is how long a read whose deadline is over waits for the source to say
// what was wrong.
const grace = 2 * time.Second

// ReadAt fills p with the device's verified bytes from off on, or fails. It
// waits for what is missing until ctx ends or Options.Deadline is over.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := l.check(off, n); err != nil {
		return err
	}
	l.touched(off, off+n)
	w := want{p: p, off: off, end: off + n}
	err := l.store.Read(p, off)
	if err == nil {
		l.follow(ctx, off, w.end, false)
		return nil
	}
	if errors.Is(err, store.ErrMissing) { // else fetch finds the same
		l.unreadable(err)
	}
	return l.fetch(ctx, w)
}

// Fresh is ReadAt for bytes that the store has, and that are to come from the source all the same.
func (l *Layer) Fresh(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := l.check(off, n); err != nil {
		return err
	}
	return l.fetch(ctx, want{p: p, off: off, end: off + n, bypass: true})
}

// Fill waits until ReadAt of the n bytes from off on need not wait: until they
// are in the store, or about to be.
func (l *Layer) Fill(ctx context.Context, off, n int64) error {
	return l.Fetch(ctx, off, n, line.Demand)
}

// Fetch is Fill with a priority. The deadline is one read's, so it takes a few
// requests' worth at a time rather than a layer.
func (l *Layer) Fetch(ctx context.Context, off, n int64, prio line.Priority) error {
	if err := l.check(off, n); err != nil {
		return err
	}
	if l.present(off, off+n) {
		return nil
	}
	return l.fetch(ctx, want{off: off, end: off + n, prio: prio})
}

// present says whether the store has the range, as far as can be told.
func (l *Layer) present(off, end int64) bool {
	spans, err := l.index.Spans()
	first, last := spans.Cut(off, end)
	return err == nil && l.firstMissing(first, last) == last
}

func (l *Layer) check(off, n int64) error {
	if size := l.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("read layer %s: [%d, +%d) is outside its %d bytes", l.name, off, n, size)
	}
	return nil
}

// fetch is ReadAt, or Fetch, for a range that the store does not have.
func (l *Layer) fetch(ctx context.Context, w want) error {
	if w.prio == line.Demand {
		if l.o.Waited != nil {
			l.o.Waited(w.off, w.end)
		}
		defer l.o.Budget.ReaderWaits(l.name, w.off, w.end-w.off)()
		l.counters.waiting.Add(1)
		defer l.counters.waiting.Add(-1)
	}
	if err := l.fetchWanted(ctx, w); err != nil {
		return fmt.Errorf("read layer %s at %d: %w", l.name, w.off, err)
	}
	return nil
}

func (l *Layer) fetchWanted(ctx context.Context, want want) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	spans, err := l.index.Spans()
	if err != nil {
		l.counters.failed(err)
		return err
	}
	if want.p != nil && want.end > l.deviceSize {
		clear(want.p[max(l.deviceSize-want.off, 0):])
		want.p = want.p[:max(l.deviceSize-want.off, 0)]
	}
	want.end = min(want.end, l.deviceSize)
	if want.off >= want.end {
		return nil
	}
	w := &waiter{want: want, pending: map[*flight]struct{}{}, done: make(chan struct{})}
	stored, err := l.join(ctx, w, spans)
	if err != nil {
		return err
	}
	if want.p != nil && !want.bypass {
		l.follow(ctx, want.off, want.end, true)
	}
	// While the rest is on its way, read what the store has.
	for _, i := range stored {
		if err := l.readStored(ctx, w.within(&spans[i])); err != nil {
			l.leave(w, errNobody)
			return err
		}
	}
	return l.await(ctx, w)
}

// readStored reads what is wanted of a span that the store had; where it cannot, or has it no more,
// the span is fetched.
func (l *Layer) readStored(ctx context.Context, w want) error {
	err := l.store.Read(w.p, w.off)
	if err == nil {
		return nil
	}
	l.unreadable(err)
	w.bypass = errors.Is(err, store.ErrUnreadable)
	return l.fetchWanted(ctx, w)
}

// unreadable notes why the store did not return what it has; that it has not is no reason.
func (l *Layer) unreadable(err error) {
	if err == store.ErrMissing { //nolint:errorlint // by itself it says no more
		return
	}
	l.counters.failed(err)
	if l.o.Unreadable != nil {
		l.o.Unreadable()
	}
	if l.counters.unreadable.Add(1) == 1 {
		l.log.Error("store is not readable, fetching instead", "err", err)
	}
}

// await waits for what w has joined.
func (l *Layer) await(ctx context.Context, w *waiter) error {
	deadline := l.o.Deadline
	if w.prio == line.Demand {
		deadline = l.refusals.deadline(w.off, w.end, deadline)
	}
	limit := time.NewTimer(deadline)
	defer limit.Stop()
	select {
	case <-w.done:
		err := w.err
		if errors.Is(err, errOffered) {
			// What else was offered is known first, so that neighbours come by one request.
			select {
			case <-l.o.Push.Over():
			case <-ctx.Done():
			}
			err = l.fetchWanted(ctx, w.want)
		}
		if w.err != nil {
			l.leave(w, errNobody)
		}
		return err
	case <-ctx.Done():
		if l.leave(w, errNobody); w.ended {
			return w.err
		}
		return context.Cause(ctx)
	case <-limit.C:
	}
	ours := l.leave(w, errGaveUp)
	if w.ended {
		return w.err
	}
	err := fmt.Errorf("%w: waited %s", ErrDeadline, deadline)
	if cause := l.cause(ctx, ours); cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if w.prio == line.Demand && deadline == l.o.Deadline {
		l.refusals.add(w.off, w.end)
	}
	l.counters.failed(err)
	return err
}

// cause returns what the first of groups that were cancelled ended with.
func (l *Layer) cause(ctx context.Context, groups []*group) error {
	t := time.NewTimer(grace)
	defer t.Stop()
	for _, g := range groups {
		select {
		case <-g.done:
			if g.err != nil {
				return g.err
			}
		case <-ctx.Done():
			return nil
		case <-t.C:
			return nil
		}
	}
	return nil
}
