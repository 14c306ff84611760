package layer

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/index"
)

// arrivalPiece is after how many bytes those who wait for an arriving range are told.
const arrivalPiece = 64 << 10

// arriving is a range of a source on its way into memory.
type arriving struct {
	at   byteRange
	buf  *buffer
	held bool // see Source; of the goroutine that receives

	mu   sync.Mutex
	upTo int64         // offset where the bytes end that are here
	err  error         // why no more will come; io.EOF where all are here
	more chan struct{} // closed, and replaced, when upTo or err changes
}

func newArriving(at byteRange, buf *buffer) *arriving {
	return &arriving{at: at, buf: buf, upTo: at.from, more: make(chan struct{})}
}

// state returns how far the bytes are here, a channel that is closed when that changes, and why no more will
// come, if so.
func (a *arriving) state() (upTo int64, more <-chan struct{}, end error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.upTo, a.more, a.err
}

// advance notes that n more bytes are here, and whether, and why, no more will come.
func (a *arriving) advance(n int64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.upTo += n
	if a.err = err; err == nil && a.upTo == a.at.to {
		a.err = io.EOF
	}
	close(a.more)
	a.more = make(chan struct{})
}

// get waits for the bytes of r.
func (a *arriving) get(ctx context.Context, r index.Range) ([]byte, error) {
	for {
		upTo, more, err := a.state()
		switch {
		case upTo >= r.Off+r.Size:
			return a.buf.b[r.Off-a.at.from:][:r.Size:r.Size], nil
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

// receive fills the range from what open opens. It returns how long that took until the first byte and until the last.
func (a *arriving) receive(ctx context.Context, open opener) (first, all time.Duration, err error) {
	start := time.Now()
	err = guarded(func() error {
		body, err := open(ctx, a.at.from, a.at.size())
		if err != nil {
			return err
		}
		defer body.Close()
		if c, ok := body.(*counted); ok {
			a.held = c.held
		}
		first = time.Since(start)
		for p := a.buf.b; len(p) > 0; {
			n, err := io.ReadFull(body, p[:min(arrivalPiece, len(p))])
			if err != nil {
				return short(err)
			}
			p = p[n:]
			a.advance(int64(n), nil)
		}
		return nil
	})
	if err != nil {
		a.advance(0, err)
		return 0, 0, err
	}
	return first, time.Since(start), nil
}
