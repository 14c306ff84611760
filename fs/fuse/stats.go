package fuse

import "sync/atomic"

// Stats are the counters of a mount since it was mounted, for tests of what the kernel asks.
type Stats struct {
	Requests map[string]uint64 // by kind, as FUSE names them: "lookup", "read", …
	Errors   uint64            // requests answered with EIO and the like
}

type counters struct {
	requests [opCount]atomic.Uint64
	errors   atomic.Uint64
}

func (c *counters) request(opcode uint32) {
	c.requests[min(opcode, opCount-1)].Add(1)
}

func (c *counters) snapshot() Stats {
	s := Stats{Requests: make(map[string]uint64), Errors: c.errors.Load()}
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
