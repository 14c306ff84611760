package layer

import (
	"context"
	"slices"
	"sync"
)

// Defaults of NewBudget, bytes.
const (
	DefaultFetchBytes  = 32 << 20
	DefaultDecodeBytes = 32 << 20
)

// Priority decides which fetch gets memory first.
type Priority uint8

// Who waits for a fetch.
const (
	Demand     Priority = iota // a reader waits
	Ahead                      // a reader is on its way to it
	Replay                     // an earlier start of the image has read it
	Background                 // nobody is known to want it
	priorities
)

// Budget bounds the memory that all layers given the same Budget use for
// fetching and decoding, and lends the buffers. Safe for parallel use.
//
// A request holds its share of the fetch bytes from before it is sent until
// its spans are decoded; a span holds its share of the decode bytes from then
// until it is on disk. Whoever waits for decode bytes holds nothing but fetch
// bytes, whoever holds decode bytes waits for nobody, and each takes what it
// needs at once: so they cannot block each other for good.
type Budget struct {
	fetch  *meter
	decode *meter
	pool   pool
	spares spares
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
	return &Budget{
		fetch:  newMeter(fetch),
		decode: newMeter(decode),
		spares: spares{limit: decode / 4},
	}
}

// meter is a semaphore that counts bytes. Demand goes first, and a quarter is
// kept for it; within a priority it is first come, first served.
type meter struct {
	size    int64
	reserve int64 // what all but Demand leaves free

	mu    sync.Mutex
	free  int64
	queue [priorities][]*ticket
}

// ticket is somebody who waits for n bytes.
type ticket struct {
	n       int64
	granted chan struct{} // closed when the bytes are the ticket's
}

func newMeter(size int64) *meter {
	return &meter{size: size, free: size, reserve: size / 4}
}

// acquire waits for n bytes, 0 ≤ n ≤ size, and takes them all at once.
func (m *meter) acquire(ctx context.Context, n int64, prio Priority) error {
	m.mu.Lock()
	t := &ticket{n: n, granted: make(chan struct{})}
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
		m.queue[prio] = slices.DeleteFunc(m.queue[prio], func(o *ticket) bool { return o == t })
	}
	// Whoever stood behind may fit now.
	m.grantLocked()
	return context.Cause(ctx)
}

// release gives back n bytes.
func (m *meter) release(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free += n
	m.grantLocked()
}

func (m *meter) grantLocked() {
	for prio := range priorities {
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
