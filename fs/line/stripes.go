package line

import (
	"context"
	"io"
	"sync"
	"time"
)

// A connection that is new, or that nothing came over for a while, brings little more than 14 KB in
// its first round trip and twice as much in each after it (RFC 6928, RFC 2861): a span takes five
// or six of them. So a request that somebody waits for, or soon will, goes over several connections
// at once, so that the last byte comes within three; and these are warm for the next.
const (
	// stripeSize is how many bytes go over one connection, where there are enough of them: what
	// comes in three round trips.
	stripeSize = 96 << 10
	// stripesMost is how many connections one request takes.
	stripesMost = 10
	// stripesTotal is how many all striped requests take together; a reader's takes stripesLeast in
	// any case.
	stripesTotal = 32
	stripesLeast = 4
	// stripeRTT is the least round trip time at which this is worth the requests.
	stripeRTT = 30 * time.Millisecond
)

// stripes returns over how many connections a request of n bytes goes.
func (h *Host) stripes(prio Priority, n int64) int64 {
	if prio >= Near || h.flow.roundTrip() < stripeRTT {
		return 1
	}
	k := min((n+stripeSize-1)/stripeSize, stripesMost)
	free := stripesTotal - h.budget.lines.Load()
	if prio == Demand {
		return min(k, max(free, stripesLeast))
	}
	return min(k, max(free/2, 1))
}

// striped is a range that comes in parts, all at the same time.
type striped struct {
	budget  *Budget
	size    int64
	cancel  context.CancelFunc
	parts   []*Arriving
	now     int // the part that is read
	pos     int64
	running sync.WaitGroup
}

// stripe begins to read a range over several connections if that is worth it and there is memory
// for it.
func (h *Host) stripe(
	ctx context.Context, off, n int64, prio Priority, open Opener,
) (body io.ReadCloser, held bool, err error) {
	b := h.budget
	k := h.stripes(prio, n)
	if k <= 1 || !b.Fetch.Try(n) {
		return open(ctx, off, n)
	}
	size := (n + k - 1) / k
	s := &striped{budget: b, size: n, pos: off}
	ctx, s.cancel = context.WithCancel(ctx)
	for from := off; from < off+n; from += size {
		end := min(from+size, off+n)
		a := NewArriving(from, end, b.Buffer(end-from))
		s.parts = append(s.parts, a)
		b.lines.Add(1)
		s.running.Go(func() {
			defer b.lines.Add(-1)
			_, _, _ = a.receive(ctx, open) // whoever reads the part is told
		})
	}
	return s, false, nil
}

// Read implements io.Reader.
func (s *striped) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.now < len(s.parts) {
		a := s.parts[s.now]
		if s.pos == a.end {
			s.now++
			continue
		}
		upTo, more, err := a.state()
		if upTo > s.pos {
			n := copy(p, a.buf.B[s.pos-a.off:upTo-a.off])
			s.pos += int64(n)
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		<-more // soon after the end of ctx at the latest
	}
	return 0, io.EOF
}

// Close ends what has not come and waits for that.
func (s *striped) Close() error {
	s.cancel()
	s.running.Wait()
	for _, a := range s.parts {
		a.buf.Free()
	}
	s.budget.Fetch.Release(s.size)
	return nil
}
