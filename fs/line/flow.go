package line

import (
	"context"
	"slices"
	"sync"
	"time"
)

// The requests of Near and Background, here called fills, share the network with those that
// somebody waits for, whose bytes queue up behind all that is already under way. So what fills have
// under way is limited to what takes the line and little more. How much that is shows in how long
// its answers take to begin when it has all of that under way: on a line with room a round trip,
// else as much longer as the queue is.
const (
	flowFirst = 3 << 19 // bytes under way to begin with
	flowLeast = 3 << 19
	flowMost  = 12 << 20

	// A queue that is shorter than half a round trip, or than shortQueue, lets more be sent; one
	// that is twice as long, less. Where no reader has waited for quietAfter, it is at least
	// shortQueue, and so many times as long: busy processors make answers late as well, and then
	// less under way costs time and gains nothing.
	shortQueue = 5 * time.Millisecond
	quietAfter = 2 * time.Second
	quietTimes = 3
	// flowSamples is after how many answers the bytes under way are adapted. The quickest of them
	// counts, as connections that had to be made, and servers that had to think, delay only some.
	flowSamples = 5
	// The bytes under way become so many times as many, or what is left of them at the least.
	flowGrowth, flowShrinkage = 1.15, 0.6
	// baseFor is how long the quickest answer counts as the line's round trip: routes change.
	baseFor = time.Minute

	// That many requests share the bytes, each of so many at the least and at the most.
	flowRequests = 4
	leastRequest = 512 << 10
	mostRequest  = 2 << 20
)

// flow admits the requests of Near and, after them, Background to one host: as many bytes as the
// way to it can take without a queue. It does not stand still for readers who wait: what that gains
// is lost again in the burst that follows.
type flow struct {
	readers *readers
	mu      sync.Mutex
	window  int64 // bytes that may be under way
	used    int64 // bytes that are
	queue   []*ticket

	base   time.Duration // until the quickest answer began; 0: none yet
	baseAt time.Time
	recent []time.Duration // until answers began, those of requests that filled the window
}

func newFlow(r *readers) *flow { return &flow{readers: r, window: flowFirst} }

// acquire waits until n more bytes may be asked for. filled says that these fill the window.
func (f *flow) acquire(ctx context.Context, n int64, prio Priority) (filled bool, err error) {
	t := &ticket{n: n, urgency: NewUrgency(prio), granted: make(chan struct{})}
	f.mu.Lock()
	at := slices.IndexFunc(f.queue, func(o *ticket) bool { return o.urgency.Priority() > prio })
	if at < 0 {
		at = len(f.queue)
	}
	f.queue = slices.Insert(f.queue, at, t)
	f.grantLocked()
	f.mu.Unlock()
	select {
	case <-t.granted:
		return t.filled, nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-t.granted:
		f.used -= n
	default:
		f.queue = slices.DeleteFunc(f.queue, func(o *ticket) bool { return o == t })
	}
	f.grantLocked()
	return false, context.Cause(ctx)
}

// request is how large the requests should be, bytes.
func (f *flow) request() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return min(max(f.window/flowRequests, leastRequest), mostRequest)
}

// arrived notes that n bytes that were asked for are here, or will not come.
func (f *flow) arrived(n int64) {
	if n == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used -= n
	f.grantLocked()
}

// roundTrip returns how long the quickest answer took to begin, lately; 0: none has come yet.
func (f *flow) roundTrip() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.base
}

func (f *flow) grantLocked() {
	for len(f.queue) > 0 {
		t := f.queue[0]
		if f.used > 0 && f.used+t.n > f.window {
			return
		}
		f.used += t.n
		t.filled = f.used+t.n > f.window
		f.queue = f.queue[1:]
		close(t.granted)
	}
}

// answered notes how long a request, of whatever priority, took until its answer began; filled says
// that it was one of a fill's that filled the window.
func (f *flow) answered(d time.Duration, filled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); f.base == 0 || d <= f.base || now.Sub(f.baseAt) > baseFor {
		f.base, f.baseAt = d, now
	}
	if !filled {
		return
	}
	if f.recent = append(f.recent, d); len(f.recent) < flowSamples {
		return
	}
	quickest := slices.Min(f.recent)
	f.recent = f.recent[:0]
	window := float64(f.window)
	short := min(f.base/2, shortQueue)
	if f.readers.unwaited() > quietAfter {
		short = quietTimes * shortQueue
	}
	switch queue := quickest - f.base; {
	case queue < short:
		window *= flowGrowth
	case queue > 2*short:
		// What is under way comes in within quickest.
		window *= max(float64(f.base+short)/float64(quickest), flowShrinkage)
	}
	f.window = min(max(int64(window), flowLeast), flowMost)
	f.grantLocked()
}
