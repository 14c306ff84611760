package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// grace is how long a read whose deadline is over waits for the source to say
// what was wrong.
const grace = 2 * time.Second

// linger is how long a fetch goes on after its last reader was interrupted, because most of those
// come back for the same bytes.
const linger = 5 * time.Second

// waiter is a reader that waits for flights. Its fields are guarded by Layer.mu,
// but err may be read once done is closed.
type waiter struct {
	want
	pending map[*flight]struct{}
	ended   bool
	err     error
	done    chan struct{} // closed when nothing is pending any more, or by an error
}

// endLocked wakes the reader.
func (w *waiter) endLocked(err error) {
	if !w.ended {
		w.ended, w.err = true, err
		close(w.done)
	}
}

// flight is a span on its way. Its fields are guarded by Layer.mu.
type flight struct {
	span    int
	claim   *line.Claim // of its decoding
	group   *group
	waiters []*waiter
	data    []byte // once decoded, until the store has it
	ended   bool   // decoded, or given up
}

// group is the flights that one request brings, with the goroutine that runs it.
type group struct {
	extent  extent
	spans   index.Spans
	claim   *line.Claim
	flights []*flight // of the extent's spans; nil: taken over by another group. Fixed once begun
	pushed  bool      // it begins when the push is over
	begun   bool      // its request has been admitted, or its span was offered; guarded by Layer.mu
	whole   bool      // it is a stream of the whole blob: see whole.go
	moved   time.Time // when a stream has brought something last; guarded by Layer.mu
	ctx     context.Context
	cancel  context.CancelCauseFunc
	waiting int           // how many waiters its flights have in all; guarded by Layer.mu
	expiry  *time.Timer   // ends a group without waiters; nil: it had some until now. Of Layer.mu
	done    chan struct{} // closed when the goroutine ends
	err     error         // why it gave up; valid once done is closed
}

// flight returns the group's flight of span i.
func (g *group) flight(i int) *flight { return g.flights[i-g.extent.first] }

// fetch is ReadAt, or Fetch, for a range that the store does not have.
func (l *Layer) fetch(ctx context.Context, w want) error {
	if w.prio == line.Demand {
		if l.o.Waited != nil {
			l.o.Waited(w.off, w.end)
		}
		defer l.o.Budget.ReaderWaits()()
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
	spans, err := l.table()
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

// join makes w wait for the spans that it wants and the store does not have; it
// starts those that nobody has started. It returns the spans that are to be read
// from the store.
func (l *Layer) join(ctx context.Context, w *waiter, spans index.Spans) (stored []int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	var missing []int
	for i := spans.Find(w.off); i < len(spans) && spans[i].Device < w.end; i++ {
		// A flight leaves the table only after the store, or the spares, have
		// its span: whoever finds it in none of the three is the first.
		if f := l.flights[i]; f != nil {
			if !f.group.begun && w.prio < f.group.claim.Priority() {
				missing = append(missing, i) // taken over
				continue
			}
			l.attachLocked(w, f, &spans[i])
			continue
		}
		if !w.bypass && l.store.Present(i) {
			if w.p != nil {
				stored = append(stored, i)
			}
			continue
		}
		// The background wants it in the store.
		give := func(data []byte) { w.copySpan(&spans[i], data) }
		if w.background() || !l.o.Budget.Spares.Use(l, i, give) {
			if err := affordable(l.o.Budget, &spans[i]); err != nil {
				l.leaveLocked(w, errNobody)
				return nil, fmt.Errorf("span %d: %w", i, err)
			}
			missing = append(missing, i)
		}
	}
	if w.p != nil {
		l.missed(missing)
	}
	if spans.FromStart() && len(missing) > 0 {
		g := l.wholeLocked(ctx, spans, missing, w.prio)
		for _, i := range missing {
			l.attachLocked(w, g.flights[i], &spans[i])
		}
		missing = nil
	}
	for _, g := range l.startLocked(ctx, spans, missing, w.prio) {
		for _, f := range g.flights {
			l.attachLocked(w, f, &spans[f.span])
		}
	}
	if len(w.pending) == 0 {
		w.endLocked(nil)
	}
	return stored, nil
}

// attachLocked makes w wait for f, or serves it at once.
func (l *Layer) attachLocked(w *waiter, f *flight, s *index.Span) {
	if f.data != nil && !w.background() {
		w.copySpan(s, f.data)
		return
	}
	b := l.o.Budget
	f.claim.Raise(w.prio, b.Decode, b.Decoders)
	f.group.claim.Raise(w.prio, b.Fetch)
	f.waiters = append(f.waiters, w)
	f.group.waiting++
	w.pending[f] = struct{}{}
}

// startLocked starts the fetch of missing spans, in rising order. Those that are coming wait for
// the push.
func (l *Layer) startLocked(
	ctx context.Context, spans index.Spans, missing []int, prio line.Priority,
) (all []*group) {
	var now, pushed []int
	for _, i := range missing {
		if l.coming(i, prio) {
			pushed = append(pushed, i)
		} else {
			now = append(now, i)
		}
	}
	extents := plan(spans, now, l.request(prio))
	for n, e := range append(extents, plan(spans, pushed, l.request(prio))...) {
		g := l.groupLocked(ctx, spans, e, prio)
		g.pushed = n >= len(extents)
		l.running.Go(func() { l.run(g) })
		all = append(all, g)
	}
	return all
}

// groupLocked makes a group of an extent. Flights of groups that have not begun yet come over to
// it.
func (l *Layer) groupLocked(
	ctx context.Context, spans index.Spans, e extent, prio line.Priority,
) *group {
	g := &group{extent: e, spans: spans, claim: line.NewClaim(prio), done: make(chan struct{})}
	// The group outlives the reader that starts it if others come.
	g.ctx, g.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	for i := e.first; i < e.first+e.n; i++ {
		f := l.flights[i]
		if f == nil {
			f = &flight{span: i}
			l.flights[i] = f
		} else {
			old := f.group
			old.flights[i-old.extent.first] = nil
			old.waiting -= len(f.waiters)
			g.waiting += len(f.waiters)
			if !slices.ContainsFunc(old.flights, func(f *flight) bool { return f != nil }) {
				old.cancel(errNobody)
			}
		}
		f.group = g
		f.claim = line.NewClaim(prio) // nothing waits at a meter for it yet
		g.flights = append(g.flights, f)
	}
	return g
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
			err = l.anew(ctx, w.want)
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

// leave takes w away from the flights that it waits for: nothing is copied to it
// from then on. Groups that nobody waits for any more are ended with why, and
// returned; after a reader that was interrupted (errNobody) those that have begun linger.
func (l *Layer) leave(w *waiter, why error) []*group {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaveLocked(w, why)
}

func (l *Layer) leaveLocked(w *waiter, why error) (ended []*group) {
	for f := range w.pending {
		f.waiters = slices.DeleteFunc(f.waiters, func(o *waiter) bool { return o == w })
		g := f.group
		if g.waiting--; g.waiting > 0 || g.goesOn(l.o.Deadline) {
			continue
		}
		if errors.Is(why, errNobody) && w.prio == line.Demand && g.begun && !l.closed {
			l.expireAfterLocked(g, linger)
			continue
		}
		l.abandonLocked(g, why)
		ended = append(ended, g)
	}
	w.pending = nil
	return ended
}

// abandonLocked ends a group that nobody waits for.
func (l *Layer) abandonLocked(g *group, why error) {
	for _, f := range g.flights {
		if f != nil && !f.ended {
			// Whoever comes next must not join a fetch that is ending.
			f.ended = true
			delete(l.flights, f.span)
		}
	}
	g.cancel(why)
}

// deliver gives the decoded bytes of a flight to all readers that wait for it, and to
// those that come until retire.
func (l *Layer) deliver(f *flight, s *index.Span, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.ended = true
	f.data = data
	for _, w := range l.detachLocked(f, func(w *waiter) bool { return !w.background() }) {
		w.copySpan(s, data)
		if delete(w.pending, f); len(w.pending) == 0 {
			w.endLocked(nil)
		}
	}
}

// retire takes a flight out of the table. Its span is in the store, or among the
// spares, or lost to those that wait, who get err.
func (l *Layer) retire(f *flight, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.ended = true
	f.data = nil
	if l.flights[f.span] == f {
		delete(l.flights, f.span)
	}
	for _, w := range l.detachLocked(f, func(*waiter) bool { return true }) {
		delete(w.pending, f)
		if err != nil || len(w.pending) == 0 {
			w.endLocked(err)
		}
	}
}

// detachLocked takes those waiters from a flight of which which says so.
func (l *Layer) detachLocked(f *flight, which func(*waiter) bool) (ws []*waiter) {
	f.waiters = slices.DeleteFunc(f.waiters, func(w *waiter) bool {
		if which(w) {
			ws = append(ws, w)
			return true
		}
		return false
	})
	f.group.waiting -= len(ws)
	return ws
}
