package pull

import (
	"context"
	"sync"
)

// defaultScanMemory is Limits.ScanMemory where that is 0, bytes: the trees of some 150,000 files.
const defaultScanMemory = 64 << 20

// scans bounds the memory of all scans of the node: downloads of layers without an index, and
// proofs. A scan takes memory as its tree grows. Where there is none left it waits until another
// one has ended. One scan at a time may take more than there is, as much as Limits.Entries allows
// one layer: so there is always one that does not wait. It ends, as a download of which nothing
// comes fails.
type scans struct {
	size    int64
	changed func(used int64) // told of used; must not block

	mu   sync.Mutex
	used int64
	over *Scan         // the one that may take more
	less chan struct{} // closed, and replaced, when something was given back
}

func newScans(size int64, changed func(int64)) *scans {
	if size == 0 {
		size = defaultScanMemory
	}
	if changed == nil {
		changed = func(int64) {}
	}
	return &scans{size: size, changed: changed, less: make(chan struct{})}
}

// Scan is the memory of one scan. Its methods are for one goroutine at a time.
type Scan struct {
	all  *scans
	ctx  context.Context
	held int64
}

// begin returns a scan that has taken nothing. Pair it with End.
func (s *scans) begin(ctx context.Context) *Scan { return &Scan{all: s, ctx: ctx} }

// Take waits for n more bytes, as long as the scan's context lasts: see tartree.Limits.Memory.
func (c *Scan) Take(n int64) error {
	for {
		less, ok := c.try(n)
		if ok {
			return nil
		}
		select {
		case <-less:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
}

// try is Take without waiting. Where it returns false, there may be more when less is closed.
func (c *Scan) try(n int64) (less <-chan struct{}, ok bool) {
	s := c.all
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+n > s.size {
		if s.over == nil {
			s.over = c
		}
		if s.over != c {
			return s.less, false
		}
	}
	s.used += n
	c.held += n
	s.changed(s.used)
	return nil, true
}

// Count takes n bytes without waiting, whether they are there or not.
func (c *Scan) Count(n int64) {
	s := c.all
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used += n
	c.held += n
	s.changed(s.used)
}

// End gives back what the scan has taken.
func (c *Scan) End() {
	s := c.all
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= c.held
	c.held = 0
	if s.over == c {
		s.over = nil
	}
	s.changed(s.used)
	close(s.less)
	s.less = make(chan struct{})
}

// Scan begins a scan of a tar, which has taken no memory yet. Pair it with End.
func (a *Pulls) Scan(ctx context.Context) *Scan { return a.scans.begin(ctx) }
