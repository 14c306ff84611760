package layer

import (
	"context"
	"fmt"
	"slices"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

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
	first, last := spans.Cut(w.off, w.end)
	for i := first; i < last; i++ {
		// A flight leaves the table only after the store, or the spares, have
		// its span: whoever finds it in none of the three is the first.
		if f := l.flights[i]; f != nil {
			if !f.group.begun && w.prio < f.group.urgency.Priority() {
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
	f.urgency.Raise(w.prio, b.Decode, b.Decoders)
	f.group.urgency.Raise(w.prio, b.Fetch)
	f.waiters = append(f.waiters, w)
	f.group.waiting++
	w.pending[f] = struct{}{}
}

// coming says whether who wants a span that urgently waits for the push: a reader does so only for
// what is on its way.
func (l *Layer) coming(i int, prio line.Priority) bool {
	return l.o.Push != nil && l.o.Push.Coming(i, prio == line.Demand)
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
		l.goLocked(g, l.bring)
		all = append(all, g)
	}
	return all
}

// groupLocked makes a group of an extent. Flights of groups that have not begun yet come over to
// it.
func (l *Layer) groupLocked(
	ctx context.Context, spans index.Spans, e extent, prio line.Priority,
) *group {
	g := &group{extent: e, spans: spans, urgency: line.NewUrgency(prio), done: make(chan struct{})}
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
		f.urgency = line.NewUrgency(prio) // nothing waits at a meter for it yet
		g.flights = append(g.flights, f)
	}
	return g
}
