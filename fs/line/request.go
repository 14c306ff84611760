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
	// idleFor is how long a request may bring nothing before others are lent its memory.
	idleFor = 2 * time.Second
	// gapBuffer is how many bytes between pieces are read at a time.
	gapBuffer = 4 << 10
)

// Opener begins to read n bytes of a blob from off on.
type Opener = func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// Range is n bytes of a blob.
type Range struct{ Off, Size int64 }

func (r Range) end() int64 { return r.Off + r.Size }

// Request is a part of a blob on its way into memory, cut into pieces that are used in place, each
// as soon as it is here. It comes over one connection or, from a host that is far, over several at
// once.
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
	urgency   *Urgency
	open      Opener
	pieces    []Range // neighbours may share bytes, or have a gap between them
	off, size int64   // from the first to the last

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	returning sync.Mutex // locked while what was lent comes back

	mu    sync.Mutex
	bufs  []*Buffer // of the pieces; nil: nothing has come
	parts []*part
	left  int           // parts that have not come
	more  chan struct{} // closed, and replaced, when those who wait have to look again
	idle  *time.Timer   // lends; nil: never
	lent  int64
}

// part is what one connection brings. Guarded by Request.mu.
type part struct {
	off, end int64
	upTo     int64 // where the bytes end that are here
	want     int64 // up to where somebody waits for them
	err      error // why no more will come
}

// Request sends the request that was admitted with u, for pieces that are in the order of the blob,
// and that neither begin nor end before the one before them.
func (g *Grant) Request(ctx context.Context, u *Urgency, pieces []Range, open Opener) *Request {
	r := newRequest(ctx, g.host, u.Priority(), pieces, open)
	r.grant, r.urgency = g, u
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
		bufs: make([]*Buffer, len(pieces)), more: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	return r
}

// Here is a Request all of whose bytes are in buf already.
func Here(off int64, buf *Buffer) *Request {
	all := Range{off, int64(len(buf.B))}
	return &Request{
		pieces: []Range{all}, off: off, size: all.Size,
		cancel: func() {}, bufs: []*Buffer{buf},
		parts: []*part{{off: off, end: all.end(), upTo: all.end()}},
	}
}

// send asks for all of it.
func (r *Request) send() {
	k := max(r.host.stripes(r.prio, r.size), 1)
	step := (r.size + k - 1) / k
	for off, end := r.off, r.off+r.size; off < end; off += step {
		p := &part{off: off, end: min(off+step, end), upTo: off, want: math.MaxInt64}
		r.parts = append(r.parts, p)
	}
	r.left = len(r.parts)
	lines := int64(min(len(r.parts)-1, 1)) // of each part: a single connection does not count
	for _, p := range r.parts {
		r.host.budget.lines.Add(lines)
		r.running.Go(func() {
			defer r.host.budget.lines.Add(-lines)
			err := Guarded(func() error { return r.receive(p) })
			r.ended(p, err)
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
	for {
		b, more, err := r.look(off, n)
		if b != nil || err != nil {
			return b, err
		}
		select {
		case <-more:
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
	here := true
	for _, p := range r.parts {
		need := min(off+n, p.end)
		switch {
		case p.end <= off || p.upTo >= need:
		case p.err != nil:
			return nil, nil, p.err
		default:
			here, p.want = false, min(p.want, need)
		}
	}
	if !here {
		return nil, r.more, nil
	}
	i := sort.Search(len(r.pieces), func(i int) bool { return r.pieces[i].Off > off }) - 1
	return r.bufs[i].B[off-r.pieces[i].Off:][:n:n], nil, nil
}

// Failed says whether some of the bytes will not come.
func (r *Request) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.parts {
		if p.err != nil {
			return true
		}
	}
	return false
}

// Close ends what has not come, waits for that, and gives the buffers back.
func (r *Request) Close() {
	r.Stop()
	for _, b := range r.bufs {
		b.Free()
	}
}

// Stop ends what has not come, and waits for that. What is here can be used as before.
func (r *Request) Stop() {
	r.cancel()
	r.running.Wait()
	r.mu.Lock() // until lend is through
	defer r.mu.Unlock()
	if r.idle != nil {
		r.idle.Stop()
	}
}
