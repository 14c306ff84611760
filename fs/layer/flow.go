package layer

import (
	"context"
	"slices"
	"sync"
	"time"
)

// The requests of Background share the network with those that somebody waits for, whose bytes queue up behind
// all that is already under way. So what Background has under way is limited to what fills the line and little more:
// the rate at which bytes come in, times a round trip and flowQueue. The rate is the best of the last
// intervals, the round trip how long the quickest answer took to begin. While less is under way than the line
// can take, bytes come in at window per round trip, and the window grows.
const (
	flowFirst = 1 << 20 // bytes under way to begin with
	flowLeast = 1 << 20
	flowMost  = 12 << 20
	flowQueue = 10 * time.Millisecond

	// A rate is measured while bytes are under way, over such an interval, and the best of so many counts.
	rateInterval = 100 * time.Millisecond
	rateCount    = 8
	// baseFor is how long the quickest answer counts as the line's round trip: routes change.
	baseFor = time.Minute

	// That many requests share the bytes, each of so many at the least and at the most.
	flowRequests = 4
	leastRequest = 256 << 10
	mostRequest  = 2 << 20
)

// flowPatience is for how long Background stands still for readers that wait; time in which none does is added again. Then
// it goes on, with half of what it may have under way: something is wrong, or readers wait nearly all
// the time. Half is less than a round trip's bytes as a rule, so that no queue comes of it.
const flowPatience = 250 * time.Millisecond

// flow admits the requests of Background: none where a reader has begun to wait, and otherwise as many bytes as the
// line can take without a queue.
type flow struct {
	mu       sync.Mutex
	window   int64 // bytes that may be under way
	used     int64 // bytes that are
	queue    []*ticket
	waiting  int           // readers that wait
	since    time.Time     // when the first of them came, or the last one went
	patience time.Duration // what is left of flowPatience, at since
	timer    *time.Timer   // ends it

	base   time.Duration // until the quickest answer began; 0: none yet
	baseAt time.Time

	busyAt   time.Time     // bytes have been under way since then, if used > 0, or since it was counted last
	busy     time.Duration // counted since the last sample
	received int64         // bytes, since the last sample
	rates    []float64     // bytes per second, the last samples
}

func newFlow() *flow { return &flow{window: flowFirst, patience: flowPatience, since: time.Now()} }

// hold says that a reader waits from now on, until the release that is paired with it.
func (f *flow) hold() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measureLocked()
	if f.waiting++; f.waiting == 1 {
		now := time.Now()
		f.patience = min(f.patience+now.Sub(f.since), flowPatience)
		f.since = now
		f.timer = time.AfterFunc(f.patience, f.grant)
	}
}

func (f *flow) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measureLocked()
	if f.waiting--; f.waiting == 0 {
		now := time.Now()
		f.patience = max(f.patience-now.Sub(f.since), 0)
		f.since = now
		f.timer.Stop()
		f.grantLocked()
	}
}

// acquire waits until n more bytes may be asked for.
func (f *flow) acquire(ctx context.Context, n int64) error {
	t := &ticket{n: n, granted: make(chan struct{})}
	f.mu.Lock()
	f.queue = append(f.queue, t)
	f.grantLocked()
	f.mu.Unlock()
	select {
	case <-t.granted:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-t.granted:
		f.measureLocked()
		f.used -= n
	default:
		f.queue = slices.DeleteFunc(f.queue, func(o *ticket) bool { return o == t })
	}
	f.grantLocked()
	return context.Cause(ctx)
}

// request is how large the requests should be, bytes.
func (f *flow) request() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return min(max(f.window/flowRequests, leastRequest), mostRequest)
}

// arrived notes that n bytes that were asked for are here.
func (f *flow) arrived(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == 0 {
		f.received += n
	}
	f.measureLocked()
	f.used -= n
	f.grantLocked()
}

// dropped notes that n bytes that were asked for will not come.
func (f *flow) dropped(n int64) {
	if n == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measureLocked()
	f.used -= n
	f.grantLocked()
}

// measureLocked counts the time since it was called last, and takes a sample where that is due. It is called before used
// or waiting changes. While a reader waits the rate is not the line's.
func (f *flow) measureLocked() {
	now := time.Now()
	if f.used > 0 && f.waiting == 0 {
		f.busy += now.Sub(f.busyAt)
	}
	f.busyAt = now
	if f.busy < rateInterval || f.base == 0 {
		return
	}
	if len(f.rates) == rateCount {
		f.rates = slices.Delete(f.rates, 0, 1)
	}
	f.rates = append(f.rates, float64(f.received)/f.busy.Seconds())
	f.busy, f.received = 0, 0
	window := slices.Max(f.rates) * (f.base + flowQueue).Seconds()
	f.window = min(max(int64(window), flowLeast), flowMost)
}

func (f *flow) grant() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grantLocked()
}

func (f *flow) grantLocked() {
	for len(f.queue) > 0 {
		t := f.queue[0]
		window := f.window
		if f.waiting > 0 {
			if time.Since(f.since) < f.patience {
				return
			}
			window /= 2
		}
		if f.used > 0 && f.used+t.n > window {
			return
		}
		f.measureLocked()
		f.used += t.n
		f.queue = f.queue[1:]
		close(t.granted)
	}
}

// answered notes how long a request, of whatever priority, took until its answer began.
func (f *flow) answered(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); f.base == 0 || d <= f.base || now.Sub(f.baseAt) > baseFor {
		f.base, f.baseAt = d, now
	}
}
