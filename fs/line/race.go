package line

import (
	"context"
	"io"
	"sync"
	"time"
)

// maxHedged is the largest request that is hedged, bytes.
const maxHedged = 2 << 20

// race reads a range by one request and, where that is slow, by a second one, and takes each byte
// from the one that has it first.
type race struct {
	budget  *Budget
	pace    *pace
	ctx     context.Context
	cancel  context.CancelFunc
	open    Opener
	off     int64
	end     int64
	pos     int64
	slow    *time.Timer
	start   time.Time
	runners []*Arriving
	running sync.WaitGroup
}

// race begins to read [off, end). It returns nil where there is no memory for it.
func (h *Host) race(ctx context.Context, off, end int64, open Opener) *race {
	if !h.budget.Fetch.Try(end - off) {
		return nil
	}
	r := &race{
		budget: h.budget, pace: &h.pace, open: open,
		off: off, end: end, pos: off, start: time.Now(),
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	d, ok := r.pace.slow(end - off)
	r.slow = time.NewTimer(d)
	if !ok {
		r.slow.Stop()
	}
	r.run()
	return r
}

func (r *race) size() int64 { return r.end - r.off }

// run sends a request. Its memory has been taken.
func (r *race) run() {
	a := NewArriving(r.off, r.end, r.budget.Buffer(r.size()))
	r.runners = append(r.runners, a)
	r.running.Go(func() {
		first, all, err := a.receive(r.ctx, r.open)
		if err == nil && !a.held {
			r.pace.observe(first, all, r.size())
		}
	})
}

// Read implements io.Reader.
func (r *race) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.pos == r.end {
			return 0, io.EOF
		}
		var changed [2]<-chan struct{}
		var failed error
		for i, a := range r.runners {
			upTo, more, err := a.state()
			if upTo > r.pos {
				n := copy(p, a.buf.B[r.pos-r.off:upTo-r.off])
				r.pos += int64(n)
				return n, nil
			}
			if changed[i] = more; err != nil {
				changed[i], failed = nil, err
			}
		}
		if changed[0] == nil && changed[1] == nil {
			return 0, failed
		}
		// Once ctx has ended both say soon what was wrong.
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-r.slow.C:
			if r.pace.hedge() && r.budget.Fetch.Try(r.size()) {
				r.run()
			}
		}
	}
}

// Close ends both requests and waits for them.
func (r *race) Close() error {
	r.slow.Stop()
	if a := r.runners[0]; len(r.runners) > 1 {
		if upTo, _, _ := a.state(); upTo < r.end {
			// The first is as slow as it has been until now, at least.
			r.pace.observe(time.Since(r.start), time.Since(r.start), r.size())
		}
	}
	r.cancel()
	r.running.Wait()
	for _, a := range r.runners {
		a.buf.Free()
		r.budget.Fetch.Release(r.size())
	}
	return nil
}
