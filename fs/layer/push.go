package layer

import (
	"context"
	"errors"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// Push brings some of a layer's spans without being asked: it calls Offer. What waits for a span
// that is coming fetches it when the push is over. Parallel calls are made.
type Push interface {
	// Coming says whether a span is about to be offered; sent: whether it is on its way already.
	Coming(span int, sent bool) bool
	// Over is closed when nothing is coming any more, and what was offered is used.
	Over() <-chan struct{}
}

// frameExcess is how many times as many bytes as span and window have a frame has at most: a larger
// one saves nothing, and is left alone.
const frameExcess = 2

// errOffered is the error of a flight whose frames were wrong. Its waiters ask anew.
var errOffered = errors.New("what was offered is wrong")

// Lacks says whether a span is neither here nor on its way by a request.
func (l *Layer) Lacks(i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lacksLocked(i)
}

func (l *Layer) lacksLocked(i int) bool {
	f := l.flights[i]
	return !l.closed && (f == nil || !f.group.begun) && !l.store.Present(i)
}

// Offer takes a span that the layer lacks from its zstd frames. Those who wait for it get it from
// there, or fetch it if the frames are wrong. done is called when they are not used any more, with
// what was wrong.
func (l *Layer) Offer(ctx context.Context, i int, frames []byte, done func(wrong error)) {
	spans, err := l.index.Spans()
	if err != nil || i >= len(spans) || spans.FromStart() ||
		int64(len(frames)) > frameExcess*(spans[i].BlobSize+spans[i].Window.Size) ||
		affordable(l.o.Budget, &spans[i]) != nil || !l.offered(ctx, spans, i, frames, done) {
		done(nil)
	}
}

// offered begins to decode what is offered, unless the layer does not lack it.
func (l *Layer) offered(
	ctx context.Context, spans index.Spans, i int, frames []byte, done func(wrong error),
) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lacksLocked(i) {
		return false
	}
	prio := line.Replay
	if f := l.flights[i]; f != nil {
		prio = min(prio, f.urgency.Priority())
	}
	g := l.groupLocked(ctx, spans, extent{i, 1}, prio)
	g.begun = true
	l.goLocked(g, func(g *group) { l.bringOffered(g, frames, done) })
	return true
}

// bringOffered is bring for a group whose only span was offered.
func (l *Layer) bringOffered(g *group, frames []byte, done func(wrong error)) {
	l.counters.fetched.Add(int64(len(frames)))
	f := g.flights[0]
	s := g.spans[f.span]
	s.Codec, s.Bit, s.Window, s.BlobSize = index.Zstd, 0, index.Range{}, int64(len(frames))
	d := decoding{group: g}
	err := line.Guarded(func() error { return l.decodeSpan(&d, f, &s, frames) })
	if err == nil && len(d.bad) > 0 {
		err = d.bad[0].err
	}
	if err != nil && g.ctx.Err() != nil {
		done(nil)
		l.giveUp(g, err)
		return
	}
	done(err) // first: who asks anew is not to wait for the push again
	if err != nil {
		l.retire(f, errOffered)
	}
}
