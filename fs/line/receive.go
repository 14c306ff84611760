package line

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime/debug"
	"sort"
	"time"
)

// receive fills a part.
func (r *Request) receive(p *part) error {
	start := time.Now()
	body, err := r.open(r.ctx, p.off, p.end-p.off)
	if err != nil {
		return err
	}
	defer body.Close()
	if r.grant != nil {
		r.host.flow.answered(time.Since(start), r.grant.filled)
	}
	for n := 0; ; {
		rest, failed := r.came(p, int64(n))
		switch {
		case failed != nil:
			return failed
		case len(rest) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
		n, err = body.Read(rest)
	}
}

// came notes that n more bytes of a part are here, and returns where the next ones go; nil: that
// was all.
func (r *Request) came(p *part, n int64) (rest []byte, err error) {
	if err := r.lock(); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	if r.idle != nil {
		r.idle.Reset(idleFor)
	}
	if n > 0 {
		r.shareLocked(p.upTo, p.upTo+n)
		p.upTo += n
		if r.grant != nil {
			r.grant.arrived(n)
		}
		if p.upTo >= p.want {
			p.want = math.MaxInt64
			r.wakeLocked()
		}
	}
	if p.upTo == p.end {
		return nil, nil
	}
	i := r.pieceOf(p.upTo)
	piece := r.pieces[i]
	if gap := min(piece.Off, p.end) - p.upTo; gap > 0 {
		return make([]byte, min(gap, gapBuffer)), nil // nobody wants these
	}
	return r.bufferLocked(i).B[p.upTo-piece.Off : min(piece.end(), p.end)-piece.Off], nil
}

// pieceOf returns the first piece that ends behind off.
func (r *Request) pieceOf(off int64) int {
	return sort.Search(len(r.pieces), func(i int) bool { return r.pieces[i].end() > off })
}

func (r *Request) bufferLocked(i int) *Buffer {
	if r.bufs[i] == nil {
		r.bufs[i] = r.host.budget.Buffer(r.pieces[i].Size)
	}
	return r.bufs[i]
}

// shareLocked copies what the pieces behind the one that bytes [from, to) have come into share with
// it.
func (r *Request) shareLocked(from, to int64) {
	i := r.pieceOf(from)
	for j := i + 1; j < len(r.pieces) && r.pieces[j].Off < to; j++ {
		piece := r.pieces[j]
		if at := max(piece.Off, from); at >= r.pieces[i].Off {
			src := r.bufs[i].B[at-r.pieces[i].Off : to-r.pieces[i].Off]
			copy(r.bufferLocked(j).B[at-piece.Off:], src)
		}
	}
}

// ended notes how a part's connection has ended.
func (r *Request) ended(p *part, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.err = err; err != nil {
		r.wakeLocked()
		return
	}
	r.left--
}

// lend gives the share of what has not come to others.
func (r *Request) lend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left > 0 && r.lent == 0 && r.ctx.Err() == nil {
		r.lent = r.grant.coming
		r.grant.give(r.lent)
		r.grant.arrived(r.grant.flow)
	}
}

// lock locks mu when nothing is lent.
func (r *Request) lock() error {
	r.mu.Lock()
	if r.lent == 0 {
		return nil
	}
	r.mu.Unlock()
	r.returning.Lock()
	defer r.returning.Unlock()
	r.mu.Lock()
	n := r.lent
	if n == 0 {
		return nil
	}
	r.mu.Unlock()
	if err := r.host.budget.Fetch.Acquire(r.ctx, n, r.urgency); err != nil {
		return err
	}
	r.mu.Lock()
	r.lent = 0
	r.grant.fetch += n
	return nil
}

// Guarded returns what f returns; a panic in f is an error. It is for goroutines that work on
// foreign bytes, or bring them.
func Guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			slog.Error("panic in a fetch", "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return f()
}
