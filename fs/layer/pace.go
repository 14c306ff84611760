package layer

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"
)

// open begins to read a range of a source.
func (l *Layer) open(ctx context.Context, src Source, off, n int64) (io.ReadCloser, error) {
	l.counters.requests.Add(1)
	body, held, err := src.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return &counted{body, &l.counters, held}, nil
}

// counted counts the bytes of a body.
type counted struct {
	io.ReadCloser
	counters *counters
	held     bool // see Source
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.counters.fetched.Add(int64(n))
	return n, err
}

// openBlob begins to read a range of the blob, or of its copy. For filled see flow.answered.
func (l *Layer) openBlob(ctx context.Context, off, n int64, prio Priority, filled bool) (io.ReadCloser, error) {
	way := l.way()
	one := func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		start := time.Now()
		src, off := l.source(off)
		body, err := l.open(ctx, src, off, n)
		if c, ok := body.(*counted); ok && !c.held {
			way.flow.answered(time.Since(start), filled)
		}
		return body, err
	}
	open := func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		return l.stripe(ctx, off, n, prio, one)
	}
	if prio == Demand && n <= maxHedged {
		if r := l.race(ctx, byteRange{off, off + n}, open); r != nil {
			return r, nil
		}
	}
	return open(ctx, off, n)
}

const (
	// paceSamples is how many requests are remembered, and paceLeast how many tell enough.
	paceSamples = 64
	paceLeast   = 16
	// paceShare is the percentile behind which a request is slow.
	paceShare = 95
	// Each request allows for a part of a hedge, so that where all have become slower not all are sent twice.
	hedgePart, hedgeParts = 1, 10 // a tenth
	hedgeMost             = 4     // that may be saved up
)

// pace is how quickly a registry has answered the requests of readers lately, at this node.
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

// slow returns after how long a request of n bytes is among the slowest; ok is false where that is not known.
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
