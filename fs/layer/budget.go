package layer

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"
)

// Defaults of NewBudget, bytes.
const (
	DefaultFetchBytes  = 24 << 20
	DefaultDecodeBytes = 24 << 20
)

// Priority says who waits for a fetch.
type Priority uint8

// The priorities, the most urgent first.
const (
	Demand     Priority = iota // a reader waits
	Ahead                      // a reader is on its way to it
	Replay                     // an earlier start of the image has read it
	Near                       // a reader has waited for what lies before it
	Background                 // nobody is known to want it
	priorities
)

// Budget bounds what all layers given the same Budget use for fetching and decoding, says who goes
// first, and lends the buffers. Safe for parallel use.
//
// A request holds its share of the fetch bytes from before it is sent until its spans are decoded, a
// piece at a time; a span holds its share of the decode bytes from then until it is on disk, and a
// decoder while it is decoded. Near and Background have their bytes admitted by the flow before all that. Whoever waits for one of
// these holds only what comes before it, and each takes what it needs at once: so they cannot block
// each other for good.
type Budget struct {
	readers  readers
	ways     ways
	fetch    *meter
	decode   *meter
	decoders *meter
	windows  atomic.Int64  // bytes left for windows sections that are kept
	compares chan struct{} // a token a comparison
	pool     pool
	spares   spares
	lines    atomic.Int64 // parts of striped requests that are under way
}

// NewBudget returns a Budget of so many bytes for blob ranges in flight and for
// decoded spans; 0 stands for DefaultFetchBytes and DefaultDecodeBytes.
func NewBudget(fetch, decode int64) *Budget {
	if fetch == 0 {
		fetch = DefaultFetchBytes
	}
	if decode == 0 {
		decode = DefaultDecodeBytes
	}
	b := &Budget{
		readers:  readers{since: time.Now()},
		fetch:    newMeter(fetch),
		decode:   newMeter(decode),
		decoders: newMeter(int64(runtime.GOMAXPROCS(0))),
		compares: make(chan struct{}, comparesMost),
		spares:   spares{limit: decode / 4},
	}
	b.windows.Store(fetch / 4)
	return b
}

// Answered tells how long a small request took that was not a layer's: about a round trip. place is a
// Source's.
func (b *Budget) Answered(place string, d time.Duration) { b.way(place).flow.answered(d, false) }

// holdMost is how long decoding is held at the most.
const holdMost = 250 * time.Millisecond

// Hold keeps the cores free of decoding that no reader waits for until release is called, but for 250 ms at the most: for what takes a
// moment if it has them, and makes many wait if not.
func (b *Budget) Hold() (release func()) { return b.decoders.hold(holdMost) }

// keep takes n bytes for a windows section; they are given back by keep of -n. It does not wait: false says that
// there are not so many.
func (b *Budget) keep(n int64) bool {
	for {
		left := b.windows.Load()
		if left < n {
			return false
		}
		if b.windows.CompareAndSwap(left, left-n) {
			return true
		}
	}
}

// grant is what a request was given of a budget. Parts of it are given back as they are not needed any more, the rest by
// close. For one goroutine, but done.
type grant struct {
	budget *Budget
	way    *way
	flow   int64 // of the line
	filled bool  // it is as full as it may be
	coming int64 // of the memory: for what has not come, and may be lent. 0 where several requests share it
	fetch  atomic.Int64
}

// admit waits until a request of n bytes may be sent. With an error the grant is of nothing.
func (b *Budget) admit(ctx context.Context, w *way, n int64, c *claim) (*grant, error) {
	g := &grant{budget: b, way: w}
	if prio := c.priority(); prio >= Near {
		filled, err := w.flow.acquire(ctx, n, prio)
		if err != nil {
			return g, err
		}
		g.flow, g.filled = n, filled
	}
	if err := b.fetch.acquireFor(ctx, n, c); err != nil {
		g.close()
		return g, err
	}
	g.fetch.Store(n)
	g.coming = n
	return g, nil
}

// arrived gives back the part of the line that n bytes took.
func (g *grant) arrived(n int64) {
	g.coming = max(g.coming-n, 0)
	if n = min(n, g.flow); n > 0 {
		g.flow -= n
		g.way.flow.arrived(n)
	}
}

// done gives back the memory of n bytes.
func (g *grant) done(n int64) {
	g.fetch.Add(-n)
	g.budget.fetch.release(n)
}

func (g *grant) close() {
	g.arrived(g.flow)
	g.budget.fetch.release(g.fetch.Swap(0))
}

// Unwaited tells for how long no read has waited; 0: one does.
func (b *Budget) Unwaited() time.Duration { return b.readers.unwaited() }
