package layer

import (
	"context"
	"io"
	"sync"
	"time"
)

// maxHedged is the largest request that is hedged, bytes.
const maxHedged = 2 << 20

// opener begins to read a range of a source.
type opener = func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// race reads a range by one request and, where that is slow, by a second one, and takes each byte from the one that has it
// first.
type race struct {
	budget  *Budget
	pace    *pace
	ctx     context.Context
	cancel  context.CancelFunc
	open    opener
	at      byteRange
	pos     int64
	slow    *time.Timer
	start   time.Time
	runners []*arriving
	running sync.WaitGroup
}

// race returns nil where it would be no use, or there is no memory for it.
func (l *Layer) race(ctx context.Context, at byteRange, open opener) *race {
	b := l.o.Budget
	if !b.fetch.try(at.size()) {
		return nil
	}
	r := &race{
		budget: b, pace: &l.way().pace, open: open,
		at: at, pos: at.from, start: time.Now(),
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	d, ok := r.pace.slow(at.size())
	r.slow = time.NewTimer(d)
	if !ok {
		r.slow.Stop()
	}
	r.run()
	return r
}

// run sends a request. Its memory has been taken.
func (r *race) run() {
	a := newArriving(r.at, r.budget.pool.get(r.at.size()))
	r.runners = append(r.runners, a)
	r.running.Go(func() {
		first, all, err := a.receive(r.ctx, r.open)
		if err == nil && !a.held {
			r.pace.observe(first, all, r.at.size())
		}
	})
}

// Read implements io.Reader.
func (r *race) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.pos == r.at.to {
			return 0, io.EOF
		}
		var changed [2]<-chan struct{}
		var failed error
		for i, a := range r.runners {
			upTo, more, err := a.state()
			if upTo > r.pos {
				n := copy(p, a.buf.b[r.pos-r.at.from:upTo-r.at.from])
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
			if r.pace.hedge() && r.budget.fetch.try(r.at.size()) {
				r.run()
			}
		}
	}
}

// Close ends both requests and waits for them.
func (r *race) Close() error {
	r.slow.Stop()
	if a := r.runners[0]; len(r.runners) > 1 {
		if upTo, _, _ := a.state(); upTo < r.at.to {
			// The first is as slow as it has been until now, at least.
			r.pace.observe(time.Since(r.start), time.Since(r.start), r.at.size())
		}
	}
	r.cancel()
	r.running.Wait()
	for _, a := range r.runners {
		a.buf.free()
		r.budget.fetch.release(r.at.size())
	}
	return nil
}
