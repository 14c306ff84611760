package layer

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestStripes: on a long way a reader's request goes over several connections, and brings the same bytes. On a short one, and for
// nobody, it is one.
func TestStripes(t *testing.T) {
	for _, c := range []struct {
		name    string
		rtt     time.Duration
		prio    Priority
		striped bool
	}{
		{"near", stripeRTT - 1, Demand, false},
		{"far", stripeRTT, Demand, true},
		{"far, replay", stripeRTT, Replay, true},
		{"far, fill", stripeRTT, Background, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var src *streaming
			f := setup(t, newSample(t), func(f *fixture, o *Options) { src = streamed(f, o) })
			f.o.Budget.Answered("", c.rtt)
			off, n := f.span(3)
			n *= 12 // spans, some hundred kilobytes of the blob
			must(t, f.Fetch(t.Context(), off, n, c.prio))
			if got := src.calls.Load(); (got > 1) != c.striped {
				t.Errorf("%d requests", got)
			}
			f.mustRead(off, n)
			f.wait()
			if lines := f.o.Budget.lines.Load(); lines != 0 {
				t.Errorf("%d connections are still counted", lines)
			}
		})
	}
}

// TestStripeFails: where one part does not come the request has failed, and what others brought of it is given back.
func TestStripeFails(t *testing.T) {
	fault := errors.New("broken off")
	var src *streaming
	f := setup(t, newSample(t), func(f *fixture, o *Options) { src = streamed(f, o) })
	f.o.Budget.Answered("", stripeRTT)
	off, n := f.span(3)
	at := f.s.spans[3].Blob
	ctx, cancel := context.WithCancelCause(t.Context())
	src.stop = func(off int64) <-chan struct{} {
		if off > at+100<<10 {
			cancel(fault)
			return nil
		}
		open := make(chan struct{})
		close(open)
		return open
	}
	if err := f.Fetch(ctx, off, 20*n, Replay); !errors.Is(err, fault) {
		t.Errorf("error is %v", err)
	}
	f.wait()
	f.nothingTaken()
	src.stop = nil
	f.mustRead(off, 20*n)
}
