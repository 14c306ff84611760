package fuse

import (
	"sync"
	"sync/atomic"
	"time"
)

// Stats are the counters of a mount since it was mounted.
type Stats struct {
	Requests    map[string]uint64 // by kind, as FUSE names them: "lookup", "read", …
	Bytes       uint64            // sent in answer to reads
	Interrupted uint64            // reads whose caller was killed
	Errors      uint64            // requests answered with EIO and the like
	Panics      uint64            // of those, by a panic in a handler
}

// Failure is an error that a caller met, and when.
type Failure struct {
	Time time.Time
	Err  error
}

type counters struct {
	requests    [opCount]atomic.Uint64
	bytes       atomic.Uint64
	interrupted atomic.Uint64
	errors      atomic.Uint64
	panics      atomic.Uint64

	mu   sync.Mutex
	last Failure
}

func (c *counters) request(opcode uint32) {
	c.requests[min(opcode, opCount-1)].Add(1)
}

func (c *counters) fail(err error) {
	c.errors.Add(1)
	c.mu.Lock()
	c.last = Failure{Time: time.Now(), Err: err}
	c.mu.Unlock()
}

func (c *counters) failure() Failure {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *counters) snapshot() Stats {
	s := Stats{
		Requests: make(map[string]uint64), Bytes: c.bytes.Load(),
		Interrupted: c.interrupted.Load(), Errors: c.errors.Load(), Panics: c.panics.Load(),
	}
	for op := range c.requests {
		n := c.requests[op].Load()
		if n == 0 {
			continue
		}
		name := opNames[op]
		if name == "" {
			name = "other"
		}
		s.Requests[name] += n
	}
	return s
}
