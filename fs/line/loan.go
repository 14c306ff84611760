package line

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// idleFor is how long a request may bring nothing before others are lent what it was given.
const idleFor = 2 * time.Second

// What a loan's reader does.
const (
	busy int32 = iota
	waits
	lends // it waits, and what it was given has been lent
)

// loan lends a request's share of the budget to others while nothing comes: readers who wait for a
// registry that is down, or for an image that it refuses, for minutes, must not hold up those of
// another. What has not come takes no memory, but for the buffers of requests that race; when it
// comes after all, the share is taken again, in the order of urgency.
//
// For one goroutine, besides the timer's.
type loan struct {
	ctx   context.Context
	grant *Grant
	claim *Claim
	body  io.ReadCloser
	state atomic.Int32
	waits atomic.Uint64 // waits begun

	mu    sync.Mutex
	seen  uint64 // waits when the timer last looked
	lent  int64
	timer *time.Timer // nil: ended
}

// openLent opens a request's body, for which admitted was given. The body takes care of the loan.
func openLent(
	ctx context.Context, admitted *Grant, c *Claim, open func() (io.ReadCloser, error),
) (io.ReadCloser, error) {
	l := &loan{ctx: ctx, grant: admitted, claim: c}
	l.mu.Lock()
	l.timer = time.AfterFunc(idleFor, l.look)
	l.mu.Unlock()
	l.wait()
	body, err := open()
	if err := l.came(err); err != nil {
		if body != nil {
			body.Close()
		}
		l.end()
		return nil, err
	}
	l.body = body
	return l, nil
}

// Read implements io.Reader.
func (l *loan) Read(p []byte) (int, error) {
	l.wait()
	n, err := l.body.Read(p)
	return n, l.came(err)
}

// Close implements io.Closer.
func (l *loan) Close() error {
	l.end()
	return l.body.Close()
}

func (l *loan) wait() {
	l.waits.Add(1)
	l.state.Store(waits)
}

// came ends a wait, whose error is err, and returns that or its own.
func (l *loan) came(err error) error {
	if l.state.CompareAndSwap(waits, busy) {
		return err
	}
	l.mu.Lock() // until look has lent all
	n := l.lent
	l.lent = 0
	l.mu.Unlock()
	l.state.Store(busy)
	if err != nil || n == 0 {
		return err
	}
	if err := l.grant.budget.Fetch.Acquire(l.ctx, n, l.claim); err != nil {
		return err
	}
	l.grant.fetch.Add(n)
	return nil
}

// look lends what has not come, if the reader waits as it did the last time.
func (l *loan) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil {
		return
	}
	l.timer.Reset(idleFor)
	if n := l.waits.Load(); n != l.seen {
		l.seen = n
		return
	}
	if !l.state.CompareAndSwap(waits, lends) {
		return
	}
	// The reader comes past this only by mu.
	g := l.grant
	l.lent = g.coming
	g.fetch.Add(-l.lent)
	g.budget.Fetch.Release(l.lent)
	g.Arrived(g.flow)
}

func (l *loan) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer.Stop()
	l.timer = nil
}
