package registry

import "sync/atomic"

// Stats counts what a Client has done since it was made.
type Stats struct {
	Requests      uint64 // HTTP requests sent, those for tokens and to redirect targets included
	TokenRequests uint64 // of these, requests to token servers
	BytesDown     uint64 // bytes of bodies read; those discarded included
	Retries       uint64 // attempts that failed and were followed by another
	Failovers     uint64 // of these, where the next attempt went to another host
}

// counters is Stats while it counts.
type counters struct {
	requests, tokens, down, retries, failovers atomic.Uint64
}

func (c *counters) retried(otherHost bool) {
	c.retries.Add(1)
	if otherHost {
		c.failovers.Add(1)
	}
}

func (c *counters) stats() Stats {
	return Stats{
		Requests: c.requests.Load(), TokenRequests: c.tokens.Load(), BytesDown: c.down.Load(),
		Retries: c.retries.Load(), Failovers: c.failovers.Load(),
	}
}
