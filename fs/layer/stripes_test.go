package layer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
)

// farAway is a round trip time at which a request goes over several connections.
const farAway = 50 * time.Millisecond

// TestStripes: on a long way a reader's request goes over several connections, and brings the same
// bytes. On a short one, and for nobody, it is one.
func TestStripes(t *testing.T) {
	for _, c := range []struct {
		name    string
		rtt     time.Duration
		prio    line.Priority
		striped bool
	}{
		{"near", farAway / 2, line.Demand, false},
		{"far", farAway, line.Demand, true},
		{"far, replay", farAway, line.Replay, true},
		{"far, fill", farAway, line.Background, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var src *streaming
			f := setup(t, newSample(t), func(f *fixture, o *Options) { src = streamed(f, o) })
			f.host().Answered(c.rtt)
			off, n := f.span(3)
			n *= 12 // spans, some hundred kilobytes of the blob
			must(t, f.Fetch(t.Context(), off, n, c.prio))
			if got := src.calls.Load(); (got > 1) != c.striped {
				t.Errorf("%d requests", got)
			}
			f.mustRead(off, n)
			f.wait()
		})
	}
}

// TestStripeFails: where one part does not come the request has failed, and what others brought of
// it is given back.
func TestStripeFails(t *testing.T) {
	fault := errors.New("broken off")
	var src *streaming
	f := setup(t, newSample(t), func(f *fixture, o *Options) { src = streamed(f, o) })
	f.host().Answered(farAway)
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
	if err := f.Fetch(ctx, off, 20*n, line.Replay); !errors.Is(err, fault) {
		t.Errorf("error is %v", err)
	}
	f.wait()
	f.nothingTaken()
	src.stop = nil
	f.mustRead(off, 20*n)
}
