package remote

import (
	"sync"
	"sync/atomic"
)

// Stats counts what a Client or an Image has done since it was made.
type Stats struct {
	Requests      uint64 // HTTP requests sent, those for tokens and to redirect targets included
	TokenRequests uint64 // of these, requests to token servers
	BytesDown     uint64 // bytes of bodies read; those discarded included
	Retries       uint64 // attempts that failed and were followed by another
	Failovers     uint64 // of these, where the next attempt went to another host
	LastError     string // the latest failed attempt, whether or not a later one succeeded
}

// counters is Stats while it counts. An image's counters pass everything on to the client's.
type counters struct {
	parent                                     *counters
	requests, tokens, down, retries, failovers atomic.Uint64

	mu   sync.Mutex
	last string
}

func (c *counters) request(token bool) {
	for ; c != nil; c = c.parent {
		c.requests.Add(1)
		if token {
			c.tokens.Add(1)
		}
	}
}

func (c *counters) received(n int) {
	for ; c != nil; c = c.parent {
		c.down.Add(uint64(n))
	}
}

func (c *counters) retried(otherHost bool) {
	for ; c != nil; c = c.parent {
		c.retries.Add(1)
		if otherHost {
			c.failovers.Add(1)
		}
	}
}

func (c *counters) failed(err error) {
	s := err.Error()
	for ; c != nil; c = c.parent {
		c.mu.Lock()
		c.last = s
		c.mu.Unlock()
	}
}

func (c *counters) stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Requests: c.requests.Load(), TokenRequests: c.tokens.Load(), BytesDown: c.down.Load(),
		Retries: c.retries.Load(), Failovers: c.failovers.Load(), LastError: c.last,
	}
}
