package line

import (
	"slices"
	"sync"
	"time"
)

const (
	// paceSamples is how many requests are remembered, and paceLeast how many tell enough.
	paceSamples = 64
	paceLeast   = 16
	// paceShare is the percentile behind which a request is slow.
	paceShare = 95
	// Each request allows for a part of a hedge, so that where all have become slower not all are
	// sent twice.
	hedgePart, hedgeParts = 1, 10 // a tenth
	hedgeMost             = 4     // that may be saved up
)

// pace is how quickly a host has answered the requests of readers lately.
type pace struct {
	mu    sync.Mutex
	first []time.Duration // until the first byte
	bytes []float64       // from there to the last, nanoseconds per byte
	next  int             // which of them is replaced next
	parts int             // of hedges, saved up
}

// observe notes how a request of n bytes went.
func (p *pace) observe(first, all time.Duration, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	perByte := float64(all-first) / float64(n)
	if len(p.first) < paceSamples {
		p.first, p.bytes = append(p.first, first), append(p.bytes, perByte)
	} else {
		p.first[p.next], p.bytes[p.next] = first, perByte
		p.next = (p.next + 1) % paceSamples
	}
	p.parts = min(p.parts+hedgePart, hedgeMost*hedgeParts)
}

// slow returns after how long a request of n bytes is among the slowest; ok is false where that is
// not known.
func (p *pace) slow(n int64) (d time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.first) < paceLeast {
		return 0, false
	}
	return percentile(p.first) + time.Duration(percentile(p.bytes)*float64(n)), true
}

func percentile[T time.Duration | float64](samples []T) T {
	s := slices.Sorted(slices.Values(samples))
	return s[len(s)*paceShare/100]
}

// hedge says whether a second request may be sent now.
func (p *pace) hedge() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parts < hedgeParts {
		return false
	}
	p.parts -= hedgeParts
	return true
}
