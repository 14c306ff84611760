package layer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// linger is how long a fetch goes on after its last reader was interrupted, because most of those
// come back for the same bytes.
const linger = 5 * time.Second

// want is what a reader asks for: device bytes [off, end).
type want struct {
	p      []byte // where they go; nil: nowhere
	off    int64
	end    int64
	prio   line.Priority
	bypass bool // do not read from the store
}

// background says that nobody reads what is wanted: it is to get into the store.
func (w *want) background() bool { return w.p == nil && w.prio > line.Demand }

// within is what is wanted of a span, for a want that goes somewhere.
func (w *want) within(s *index.Span) want {
	part := *w
	part.off, part.end = max(w.off, s.Device), min(w.end, s.Device+s.Size)
	part.p = w.p[part.off-w.off : part.end-w.off]
	return part
}

// copySpan copies to the reader what it wants of a decoded span.
func (w *want) copySpan(s *index.Span, data []byte) {
	if w.p != nil {
		part := w.within(s)
		copy(part.p, data[part.off-s.Device:])
	}
}

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
	urgency *line.Urgency // of its decoding
	group   *group
	waiters []*waiter
	data    []byte // once decoded, until the store has it
	ended   bool   // decoded, or given up
}

// group is the flights that one request brings, with the goroutine that runs it.
type group struct {
	extent  extent
	spans   index.Spans
	urgency *line.Urgency
	flights []*flight // of the extent's spans; nil: taken over by another group. Fixed once begun
	pushed  bool      // it begins when the push is over
	begun   bool      // its request has been admitted, or its span was offered; guarded by Layer.mu
	whole   bool      // it is a stream of the whole blob
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

// goesOnLocked says whether a group goes on although nobody waits for it.
func (g *group) goesOnLocked(patience time.Duration) bool {
	return g.whole && time.Since(g.moved) < patience/2
}

// goLocked runs bring, which ends the group's flights, in the group's goroutine.
//
// A panic in what works on foreign bytes, or brings them, is an error of the reads that it works
// for, and of nobody else's. Each goroutine of a fetch has to see to that itself: those that bring
// starts are line.Guarded's.
func (l *Layer) goLocked(g *group, bring func(g *group)) {
	l.running.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				l.log.Error("panic in a fetch", "panic", v, "stack", string(debug.Stack()))
				l.giveUp(g, fmt.Errorf("panic: %v", v))
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if g.expiry != nil {
				g.expiry.Stop()
			}
			g.cancel(nil)
			close(g.done)
		}()
		bring(g)
	})
}

// giveUp ends what is left of a group's flights.
func (l *Layer) giveUp(g *group, err error) {
	if g.ctx.Err() != nil && !errors.Is(err, context.Cause(g.ctx)) {
		err = fmt.Errorf("%w: %w", context.Cause(g.ctx), err)
	}
	g.err = err
	l.counters.failed(err)
	for _, f := range g.flights {
		if f != nil {
			l.retire(f, err)
		}
	}
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
		if g.waiting--; g.waiting > 0 || g.goesOnLocked(l.o.Deadline) {
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

// expireAfterLocked ends a group after d, unless somebody waits for it then.
func (l *Layer) expireAfterLocked(g *group, d time.Duration) {
	if g.expiry == nil {
		g.expiry = time.AfterFunc(d, func() { l.expire(g) })
		return
	}
	g.expiry.Reset(d)
}

// expire ends a group that nobody waits for.
func (l *Layer) expire(g *group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.waiting == 0 {
		l.abandonLocked(g, errNobody)
	}
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
