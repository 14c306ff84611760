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
	Size, Present       int64 // bytes of the device; of them in the store
	Spans, SpansPresent int   // Spans is 0 until they were needed

	Requests int64 // sent to the sources
	Fetched  int64 // bytes that they brought

	Waits   int64         // reads, and fetches that are as urgent, that could not be answered from the store
	Waiting int64         // of these, those that still wait
	WaitSum time.Duration // how long they waited, together
	WaitMax time.Duration // and the longest of them

	Hedged    int64 // requests that were sent a second time because they were slow
	HedgesWon int64 // of these, those where the second was the quicker one

	Corrupt    int64 // spans that were not what their digest says
	Unwritten  int64 // spans that the store did not take
	Unreadable int64 // reads that the store did not answer though it has the bytes

	LastError   error // nil: none so far
	LastErrorAt time.Time
}

// counters are the parts of Stats that a Layer counts itself.
type counters struct {
	requests, fetched, hedged, hedgesWon, waits, waiting, waitSum, waitMax, corrupt, unwritten, unreadable atomic.Int64

	mu   sync.Mutex
	last error
	at   time.Time
}

// waited counts one read that waited for d.
func (c *counters) waited(d time.Duration) {
	c.waitSum.Add(int64(d))
	for {
		old := c.waitMax.Load()
		if int64(d) <= old || c.waitMax.CompareAndSwap(old, int64(d)) {
			return
		}
	}
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

// Stats returns the layer's numbers now.
func (l *Layer) Stats() Stats {
	c := &l.counters
	s := Stats{
		Size:       l.deviceSize,
		Requests:   c.requests.Load(),
		Fetched:    c.fetched.Load(),
		Hedged:     c.hedged.Load(),
		HedgesWon:  c.hedgesWon.Load(),
		Waits:      c.waits.Load(),
		Waiting:    c.waiting.Load(),
		WaitSum:    time.Duration(c.waitSum.Load()),
		WaitMax:    time.Duration(c.waitMax.Load()),
		Corrupt:    c.corrupt.Load(),
		Unwritten:  c.unwritten.Load(),
		Unreadable: c.unreadable.Load(),
	}
	s.SpansPresent, s.Present = l.store.Count()
	if t := l.spans.Load(); t != nil {
		s.Spans = len(*t)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.LastError, s.LastErrorAt = c.last, c.at
	return s
}
