package line

import (
	"context"
	"io"
	"math"
	"sort"
	"sync"
	"time"
)

const (
	// maxHedged is the largest request that is sent a second time, bytes.
	maxHedged = 2 << 20
	// idleFor is how long a request may bring nothing before others are lent its memory.
	idleFor = 2 * time.Second
	// gapBuffer is how many bytes between pieces are read at a time.
	gapBuffer = 4 << 10
)

// Opener begins to read n bytes of a blob from off on. held says that they were asked for before:
// when they come says nothing of the way to the host.
type Opener = func(ctx context.Context, off, n int64) (body io.ReadCloser, held bool, err error)

// Range is n bytes of a blob.
type Range struct{ Off, Size int64 }

func (r Range) end() int64 { return r.Off + r.Size }

// Request is a part of a blob on its way into memory, cut into pieces that are used in place, each
// as soon as it is here. It comes over one connection or, from a host that is far, over several at
// once. A request that a reader waits for, and that is slower than nearly all before it, is sent a
// second time; each piece is then taken from the attempt that has it first.
//
// While nothing comes, the request's share of the Budget is lent to others: readers who wait for a
// registry that is down, or for an image that it refuses, for minutes, must not hold up those of
// another. A piece takes no memory before its first byte is about to come; when something comes
// after a pause, the share is taken again, in the order of urgency.
//
// Get may be called in parallel.
type Request struct {
	host      *Host
	prio      Priority
	grant     *Grant // what was admitted for it; nil: nothing
	claim     *Claim
	open      Opener
	pieces    []Range // neighbours may share bytes, or have a gap between them
	off, size int64   // from the first to the last

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	start   time.Time
	slow    *time.Timer // when it is sent a second time; nil: never

	taking sync.Mutex // held while what was lent is taken again

	mu       sync.Mutex
	attempts []*attempt    // one, or two
	more     chan struct{} // closed, and replaced, when those who wait have to look again
	idle     *time.Timer   // lends; nil: never
	lent     int64
}

// attempt is one try to bring all of a Request. Guarded by Request.mu.
type attempt struct {
	bufs  []*Buffer // of the pieces; nil: nothing has come
	parts []*part
	left  int // parts that have not come
	start time.Time
	first time.Duration // until something came
	held  bool          // see Opener
}

// part is what one connection brings.
type part struct {
	off, end int64
	upTo     int64 // where the bytes end that are here
	want     int64 // up to where somebody waits for them
	err      error // why no more will come
}

// Request sends the request that was admitted, for pieces that are in the order of the blob, and
// that neither begin nor end before the one before them. c is the claim that it was admitted for.
func (g *Grant) Request(ctx context.Context, c *Claim, pieces []Range, open Opener) *Request {
	r := newRequest(ctx, g.host, c.Priority(), pieces, open)
	r.grant, r.claim = g, c
	if r.hedged() {
		if d, ok := g.host.pace.slow(r.size); ok {
			r.slow = time.NewTimer(d)
		}
	}
	if !g.shared {
		r.idle = time.AfterFunc(idleFor, r.lend)
	}
	r.send()
	return r
}

// Request sends a request as a replay does, for n bytes whose memory is the caller's to acquire.
func (h *Host) Request(ctx context.Context, off, n int64, open Opener) *Request {
	r := newRequest(ctx, h, Replay, []Range{{off, n}}, open)
	r.send()
	return r
}

func newRequest(
	ctx context.Context, h *Host, prio Priority, pieces []Range, open Opener,
) *Request {
	off := pieces[0].Off
	r := &Request{
		host: h, prio: prio, open: open, pieces: pieces,
		off: off, size: pieces[len(pieces)-1].end() - off,
		start: time.Now(), more: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	return r
}

// Here is a Request all of whose bytes are in buf already.
func Here(off int64, buf *Buffer) *Request {
	all := Range{off, int64(len(buf.B))}
	a := &attempt{
		bufs:  []*Buffer{buf},
		parts: []*part{{off: off, end: all.end(), upTo: all.end()}},
	}
	return &Request{
		pieces: []Range{all}, off: off, size: all.Size,
		cancel: func() {}, attempts: []*attempt{a},
	}
}

// hedged says whether the request counts for its host's pace.
func (r *Request) hedged() bool { return r.grant != nil && r.prio == Demand && r.size <= maxHedged }

// send begins an attempt, whose memory has been taken.
func (r *Request) send() {
	k := max(r.host.stripes(r.prio, r.size), 1)
	step := (r.size + k - 1) / k
	a := &attempt{start: time.Now(), bufs: make([]*Buffer, len(r.pieces))}
	for off, end := r.off, r.off+r.size; off < end; off += step {
		p := &part{off: off, end: min(off+step, end), upTo: off, want: math.MaxInt64}
		a.parts = append(a.parts, p)
	}
	a.left = len(a.parts)
	r.mu.Lock()
	r.attempts = append(r.attempts, a)
	r.mu.Unlock()
	lines := int64(min(len(a.parts)-1, 1)) // of each part: a single connection does not count
	for _, p := range a.parts {
		r.host.budget.lines.Add(lines)
		r.running.Go(func() {
			defer r.host.budget.lines.Add(-lines)
			err := Guarded(func() error { return r.receive(a, p) })
			r.ended(a, p, err)
		})
	}
}

func (r *Request) wakeLocked() {
	close(r.more)
	r.more = make(chan struct{})
}

// Get waits for n bytes from off on, which lie in one piece. They are the Request's: not to be
// changed, nor used after Close.
func (r *Request) Get(ctx context.Context, off, n int64) ([]byte, error) {
	var slow <-chan time.Time
	if r.slow != nil {
		slow = r.slow.C
	}
	for {
		b, more, err := r.look(off, n)
		if b != nil || err != nil {
			return b, err
		}
		select {
		case <-more:
		case <-slow:
			if r.host.pace.hedge() && r.host.budget.Fetch.Try(r.size) {
				r.send()
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// look returns n bytes from off on if they are here, or else what is closed when to look again, or
// why they will not come.
func (r *Request) look(off, n int64) (b []byte, more <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := sort.Search(len(r.pieces), func(i int) bool { return r.pieces[i].Off > off }) - 1
	for _, a := range r.attempts {
		here, failed := a.has(off, off+n)
		if here {
			return a.bufs[i].B[off-r.pieces[i].Off:][:n:n], nil, nil
		}
		if err = failed; err == nil {
			more = r.more
		}
	}
	if more != nil {
		return nil, more, nil
	}
	return nil, nil, err
}

// has says whether the bytes [off, end) are here, or why they will not come.
func (a *attempt) has(off, end int64) (here bool, err error) {
	here = true
	for _, p := range a.parts {
		need := min(end, p.end)
		switch {
		case p.end <= off || p.upTo >= need:
		case p.err != nil:
			return false, p.err
		default:
			here, p.want = false, min(p.want, need)
		}
	}
	return here, nil
}

// Failed says whether some of the bytes will not come.
func (r *Request) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.attempts[0].parts {
		if p.err != nil {
			return true
		}
	}
	return false
}

// Close ends what has not come, waits for that, and gives the buffers back.
func (r *Request) Close() {
	r.mu.Lock()
	late := len(r.attempts) > 1 && r.attempts[0].left > 0
	r.mu.Unlock()
	if late {
		// The first attempt is as slow as it has been until now, at least.
		r.host.pace.observe(time.Since(r.start), time.Since(r.start), r.size)
	}
	r.Stop()
	for i, a := range r.attempts {
		for _, b := range a.bufs {
			b.Free()
		}
		if i > 0 {
			r.host.budget.Fetch.Release(r.size)
		}
	}
}

// Stop ends what has not come, and waits for that. What is here can be used as before.
func (r *Request) Stop() {
	r.cancel()
	r.running.Wait()
	if r.slow != nil {
		r.slow.Stop()
	}
	r.mu.Lock() // until lend is through
	defer r.mu.Unlock()
	if r.idle != nil {
		r.idle.Stop()
	}
}
