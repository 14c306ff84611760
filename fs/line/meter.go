package line

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Urgency is how soon something is wanted that waits at meters, or may wait soon. It can rise
// meanwhile.
type Urgency struct{ prio atomic.Int32 }

// NewUrgency returns the urgency that a priority begins with.
func NewUrgency(prio Priority) *Urgency {
	u := &Urgency{}
	u.prio.Store(int32(prio))
	return u
}

// Priority is where it stands now.
func (u *Urgency) Priority() Priority { return Priority(u.prio.Load()) }

// Raise makes it at least prio, at the given meters at once.
func (u *Urgency) Raise(prio Priority, at ...*Meter) {
	for {
		old := u.prio.Load()
		if int32(prio) >= old {
			return
		}
		if u.prio.CompareAndSwap(old, int32(prio)) {
			break
		}
	}
	for _, m := range at {
		m.moved(u)
	}
}

// Meter is a semaphore that counts bytes, or decoders. The more urgent goes first, and a part is
// kept for Demand; within a priority it is first come, first served.
type Meter struct {
	size    int64
	reserve int64 // what all but Demand leave free

	mu     sync.Mutex
	free   int64
	queue  [priorities][]*ticket
	pauses int         // that are not released
	limit  *time.Timer // ends what they do
	paused bool        // only Demand is served
}

// ticket is somebody who waits for n of the meter's units.
type ticket struct {
	n       int64
	urgency *Urgency
	filled  bool          // with it a flow's window is full; valid once granted
	granted chan struct{} // closed when the units are the ticket's
}

func newMeter(size int64) *Meter {
	return &Meter{size: size, free: size, reserve: size / 4}
}

// Size is how many units there are in all.
func (m *Meter) Size() int64 { return m.size }

// Acquire waits for n units and takes them all at once, in the order of their priority. More than
// Size would keep all others waiting: that is an error, which wraps ErrTooLarge.
func (m *Meter) Acquire(ctx context.Context, n int64, u *Urgency) error {
	if n > m.size {
		return fmt.Errorf("%w: %d of %d", ErrTooLarge, n, m.size)
	}
	m.mu.Lock()
	t := &ticket{n: n, urgency: u, granted: make(chan struct{})}
	prio := u.Priority()
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

// Try takes n units if they are to be had at once without the part that is kept for Demand.
func (m *Meter) Try(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free-n < m.reserve {
		return false
	}
	m.free -= n
	return true
}

// moved puts the tickets of an urgency that has risen where they belong.
func (m *Meter) moved(u *Urgency) {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := u.Priority()
	for prio := to + 1; prio < priorities; prio++ {
		m.queue[prio] = slices.DeleteFunc(m.queue[prio], func(t *ticket) bool {
			if t.urgency == u {
				m.queue[to] = append(m.queue[to], t)
			}
			return t.urgency == u
		})
	}
	m.grantLocked()
}

// Release gives back n units.
func (m *Meter) Release(n int64) {
	if n == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free += n
	m.grantLocked()
}

// pause keeps all but Demand waiting until release is called, but for the time most at the longest,
// which pauses that overlap have in all.
func (m *Meter) pause(most time.Duration) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pauses++; m.pauses == 1 {
		m.paused = true
		m.limit = time.AfterFunc(most, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.resumeLocked()
		})
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.pauses--; m.pauses == 0 {
			m.limit.Stop()
			m.resumeLocked()
		}
	})
}

func (m *Meter) resumeLocked() {
	m.paused = false
	m.grantLocked()
}

func (m *Meter) grantLocked() {
	for prio := range priorities {
		if m.paused && prio > Demand {
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
