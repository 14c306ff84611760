package line

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// arrivalPiece is after how many bytes those who wait for an arriving range are told.
const arrivalPiece = 64 << 10

// Arriving is a range of a blob on its way into memory.
type Arriving struct {
	off, end int64
	buf      *Buffer
	held     bool // see Opener; of the goroutine that receives

	mu   sync.Mutex
	upTo int64         // offset where the bytes end that are here
	err  error         // why no more will come; io.EOF where all are here
	more chan struct{} // closed, and replaced, when upTo or err changes
}

// NewArriving returns the range [off, end), of which nothing has come into buf yet.
func NewArriving(off, end int64, buf *Buffer) *Arriving {
	return &Arriving{off: off, end: end, buf: buf, upTo: off, more: make(chan struct{})}
}

// Size is the range's length, bytes.
func (a *Arriving) Size() int64 { return a.end - a.off }

// Failed says whether some of the range will not come.
func (a *Arriving) Failed() bool {
	_, _, err := a.state()
	return err != nil && !errors.Is(err, io.EOF)
}

// state returns how far the bytes are here, a channel that is closed when that changes, and why no
// more will come, if so.
func (a *Arriving) state() (upTo int64, more <-chan struct{}, end error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.upTo, a.more, a.err
}

// Advance notes that n more bytes are here, and whether, and why, no more will come.
func (a *Arriving) Advance(n int64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.upTo += n
	if a.err = err; err == nil && a.upTo == a.end {
		a.err = io.EOF
	}
	close(a.more)
	a.more = make(chan struct{})
}

// Get waits for n bytes from off on.
func (a *Arriving) Get(ctx context.Context, off, n int64) ([]byte, error) {
	for {
		upTo, more, err := a.state()
		switch {
		case upTo >= off+n:
			return a.buf.B[off-a.off:][:n:n], nil
		case err != nil:
			return nil, short(err)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Receive fills the range with what the host sends, as a replay does: over several connections if
// it is far.
func (h *Host) Receive(ctx context.Context, a *Arriving, open Opener) error {
	_, _, err := a.receive(ctx, func(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
		return h.stripe(ctx, off, n, Replay, open)
	})
	return err
}

// receive fills the range from what open opens. It returns how long that took until the first byte
// and until the last.
func (a *Arriving) receive(ctx context.Context, open Opener) (first, all time.Duration, err error) {
	start := time.Now()
	err = Guarded(func() error {
		body, held, err := open(ctx, a.off, a.Size())
		if err != nil {
			return err
		}
		defer body.Close()
		a.held = held
		first = time.Since(start)
		for p := a.buf.B; len(p) > 0; {
			n, err := io.ReadFull(body, p[:min(arrivalPiece, len(p))])
			if err != nil {
				return short(err)
			}
			p = p[n:]
			a.Advance(int64(n), nil)
		}
		return nil
	})
	if err != nil {
		a.Advance(0, err)
		return 0, 0, err
	}
	return first, time.Since(start), nil
}

// short is the error of a body that ended early.
func short(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
