package layer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// claim is how urgent something is that waits at meters, or may wait soon. It can become more urgent meanwhile.
type claim struct{ prio atomic.Int32 }

func (c *claim) priority() Priority { return Priority(c.prio.Load()) }

// raise makes the claim at least as urgent as prio, at the given meters at once.
func (c *claim) raise(prio Priority, at ...*meter) {
	for {
		old := c.prio.Load()
		if int32(prio) >= old {
			return
		}
		if c.prio.CompareAndSwap(old, int32(prio)) {
			break
		}
	}
	for _, m := range at {
		m.moved(c)
	}
}

func newClaim(prio Priority) *claim {
	c := &claim{}
	c.prio.Store(int32(prio))
	return c
}

// meter is a semaphore that counts bytes, or decoders. The more urgent goes first, and a part is kept for
// Demand; within a priority it is first come, first served.
type meter struct {
	size    int64
	reserve int64 // what all but Demand leave free

	mu    sync.Mutex
	free  int64
	queue [priorities][]*ticket
	holds int         // that are not released
	limit *time.Timer // ends what they do
	held  bool        // only Demand is served
}

// ticket is somebody who waits for n of the meter's units.
type ticket struct {
	n       int64
	claim   *claim
	filled  bool          // with it a flow's window is full; valid once granted
	granted chan struct{} // closed when the units are the ticket's
}

func newMeter(size int64) *meter {
	return &meter{size: size, free: size, reserve: size / 4}
}

// acquire waits for n units, 0 ≤ n ≤ size, and takes them all at once.
func (m *meter) acquire(ctx context.Context, n int64, prio Priority) error {
	return m.acquireFor(ctx, n, newClaim(prio))
}

// acquireFor is acquire with a priority that can change meanwhile. More than size units would hold up all others: an error.
func (m *meter) acquireFor(ctx context.Context, n int64, c *claim) error {
	if n > m.size {
		return fmt.Errorf("%w: %d of %d", ErrTooLarge, n, m.size)
	}
	m.mu.Lock()
	t := &ticket{n: n, claim: c, granted: make(chan struct{})}
	prio := c.priority()
	m.queue[prio] = append(m.queue[prio], t)
	m.grantLocked()
	m.mu.Unlock()
	select {
	case <-t.granted:
		return nil
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-t.granted:
		m.free += n
	default:
		for prio := range m.queue {
			m.queue[prio] = slices.DeleteFunc(m.queue[prio], func(o *ticket) bool { return o == t })
		}
	}
	// Whoever stood behind may fit now.
	m.grantLocked()
	return context.Cause(ctx)
}

// try takes n units if they are to be had at once without the part that is kept for Demand.
func (m *meter) try(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free-n < m.reserve {
		return false
	}
	m.free -= n
	return true
}

// moved puts the tickets of a claim where its priority belongs.
func (m *meter) moved(c *claim) {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := c.priority()
	for prio := to + 1; prio < priorities; prio++ {
		m.queue[prio] = slices.DeleteFunc(m.queue[prio], func(t *ticket) bool {
			if t.claim == c {
				m.queue[to] = append(m.queue[to], t)
			}
			return t.claim == c
		})
	}
	m.grantLocked()
}

// release gives back n units.
func (m *meter) release(n int64) {
	if n == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free += n
	m.grantLocked()
}

// hold keeps all but Demand waiting until release is called, but for the time most at the longest, which holds that overlap
// have in all.
func (m *meter) hold(most time.Duration) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holds++; m.holds == 1 {
		m.held = true
		m.limit = time.AfterFunc(most, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.resumeLocked()
		})
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.holds--; m.holds == 0 {
			m.limit.Stop()
			m.resumeLocked()
		}
	})
}

func (m *meter) resumeLocked() {
	m.held = false
	m.grantLocked()
}

func (m *meter) used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size - m.free
}

func (m *meter) grantLocked() {
	for prio := range priorities {
		if m.held && prio > Demand {
			return
		}
		for len(m.queue[prio]) > 0 {
			t := m.queue[prio][0]
			left := m.free - t.n
			// With nothing in use a request may go into the reserve: it might
			// never fit otherwise.
			if left < 0 || (prio > Demand && left < m.reserve && m.free < m.size) {
				return
			}
			m.free = left
			m.queue[prio] = m.queue[prio][1:]
			close(t.granted)
		}
	}
}
