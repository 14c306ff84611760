package layer

import (
	"context"
	"slices"
	"sync"
	"time"
)

// The requests of Background share the network with those that somebody waits for, whose bytes queue up behind
// all that is already under way. So what Background has under way is limited to what fills the line and little more.
// How much that is shows in how long answers take to begin: on an idle line a round trip, behind a queue as much
// longer as the queue takes to drain.
const (
	flowFirst = 4 << 20 // bytes under way to begin with
	flowLeast = 2 << 20
	flowMost  = 12 << 20
	flowStep  = 256 << 10

	// Below shortQueue more is sent, above longQueue less.
	shortQueue = 8 * time.Millisecond
	longQueue  = 20 * time.Millisecond

	// flowSamples is how many answers are looked at: the quickest counts, as connections that had to be made, and
	// servers that had to think, delay only some.
	flowSamples = 4
	// baseFor is how long the quickest answer counts as the line's round trip: routes change.
	baseFor = 30 * time.Second
)

// flowPatience is how long a reader waits before Background goes on with one request at a time: by then something
// else is wrong, or readers wait all the time.
const flowPatience = time.Second

// flow admits the requests of Background: none while a reader waits, and otherwise as many bytes as the line
// can take without a queue.
type flow struct {
	mu      sync.Mutex
	window  int64 // bytes that may be under way
	used    int64 // bytes that are
	queue   []*ticket
	waiting int // readers that wait
	since   time.Time
	timer   *time.Timer // ends flowPatience

	base   time.Duration // of the quickest answer, 0: none yet
	baseAt time.Time
	recent []time.Duration // of Background
}

func newFlow() *flow { return &flow{window: flowFirst} }

// hold says that a reader waits from now on, until the release that is paired with it.
func (f *flow) hold() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting++; f.waiting == 1 {
		f.since = time.Now()
		f.timer = time.AfterFunc(flowPatience, f.grant)
	}
}

func (f *flow) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
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
		f.used -= n
	default:
		f.queue = slices.DeleteFunc(f.queue, func(o *ticket) bool { return o == t })
	}
	f.grantLocked()
	return context.Cause(ctx)
}

// arrived notes that n bytes that were asked for are here, or not wanted any more.
func (f *flow) arrived(n int64) {
	if n == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used -= n
	f.grantLocked()
}

func (f *flow) grant() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grantLocked()
}

func (f *flow) grantLocked() {
	for len(f.queue) > 0 {
		t := f.queue[0]
		held := f.waiting > 0
		if held && time.Since(f.since) < flowPatience {
			return
		}
		if f.used > 0 && (held || f.used+t.n > f.window) {
			return
		}
		f.used += t.n
		f.queue = f.queue[1:]
		close(t.granted)
	}
}

// answered notes how long a request took until its answer began.
func (f *flow) answered(d time.Duration, prio Priority) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.base == 0 || d <= f.base || now.Sub(f.baseAt) > baseFor {
		f.base, f.baseAt = d, now
	}
	if prio != Background {
		return
	}
	f.recent = append(f.recent, d)
	if len(f.recent) < flowSamples {
		return
	}
	quickest := slices.Min(f.recent)
	switch queue := quickest - f.base; {
	case queue > longQueue:
		f.window = max(f.window*3/4, flowLeast)
		f.recent = f.recent[:0]
	default:
		if queue < shortQueue {
			f.window = min(f.window+flowStep, flowMost)
		}
		f.recent = slices.Delete(f.recent, 0, 1)
	}
	f.grantLocked()
}
