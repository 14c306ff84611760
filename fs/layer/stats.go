package layer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is what a Layer has done since New, and where it stands.
type Stats struct {
	Size, Present int64 // bytes of the device; of them in the store

	Requests int64 // sent to the sources
	Fetched  int64 // bytes that they brought

	Waiting int64 // reads, and fetches as urgent, that wait for what the store does not have

	Corrupt int64 // spans that were not what their digest says

	LastError   error // nil: none so far
	LastErrorAt time.Time
}

// counters are the parts of Stats that a Layer counts itself.
type counters struct {
	requests, fetched, waiting, corrupt, unreadable atomic.Int64

	unwritten atomic.Int64 // spans that the store did not take

	mu   sync.Mutex
	last error
	at   time.Time
}

// failed notes an error, unless it only says that nobody wanted the bytes.
func (c *counters) failed(err error) {
	if errors.Is(err, errNobody) || errors.Is(err, context.Canceled) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.at = err, time.Now()
}

// Failed notes why a request waits that is made again: a read may do so for as long as its
// deadline, and whoever looks is to see it.
func (l *Layer) Failed(err error) { l.counters.failed(err) }

// Stats returns the layer's numbers now.
func (l *Layer) Stats() Stats {
	c := &l.counters
	s := Stats{
		Size:     l.deviceSize,
		Requests: c.requests.Load(),
		Fetched:  c.fetched.Load(),
		Waiting:  c.waiting.Load(),
		Corrupt:  c.corrupt.Load(),
	}
	_, s.Present = l.store.Count()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.LastError, s.LastErrorAt = c.last, c.at
	return s
}
