package layer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFlow writes down which requests of 3 MiB are sent when.
func TestFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlow(&readers{since: time.Now()})
		f.window = 6 << 20
		var mu sync.Mutex
		var sent []string
		prio := Background
		ask := func(name string) context.CancelFunc {
			prio := prio
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				_, err := f.acquire(ctx, 3<<20, prio)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					sent = append(sent, name)
				} else if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}()
			synctest.Wait()
			return cancel
		}
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(sent) != fmt.Sprint(want) {
				t.Errorf("sent %v, want %v", sent, want)
			}
			sent = nil
		}
		ask("a")
		ask("b")
		cancel := ask("given up")
		ask("c")
		expect("a", "b")
		cancel()
		expect()
		f.arrived(3 << 20)
		expect("c")
		ask("d")
		ask("e")
		prio = Near // before the others
		ask("f")
		expect()
		f.arrived(3 << 20)
		expect("f")
		f.arrived(3 << 20)
		expect("d")
		f.arrived(3 << 20)
		expect("e")
		f.arrived(6 << 20)
		if f.used != 0 || len(f.queue) != 0 {
			t.Errorf("%d bytes are under way, %d wait", f.used, len(f.queue))
		}
	})
}

// TestFlowWindow: more is sent on a line with room, less on one with a queue.
func TestFlowWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlow(&readers{since: time.Now()})
		answers := func(d time.Duration, n int) {
			for range n {
				f.answered(d, true)
			}
		}
		expect := func(want int64) {
			t.Helper()
			if f.window != want {
				t.Errorf("window is %d, want %d", f.window, want)
			}
		}
		f.answered(50*time.Millisecond, false)
		for range 100 {
			f.answered(51*time.Millisecond, false) // little is under way, that says nothing
		}
		expect(flowFirst)
		answers(54*time.Millisecond, 100)
		expect(flowMost)
		answers(60*time.Millisecond, 100) // neither short nor long
		expect(flowMost)
		answers(65*time.Millisecond, 100)
		expect(flowLeast)
		time.Sleep(quietAfter + time.Second)
		answers(64*time.Millisecond, 100) // now that is little
		expect(flowMost)
		answers(85*time.Millisecond, 100)
		expect(flowLeast)
		f.window = flowFirst
		for range 30 {
			answers(300*time.Millisecond, 4) // four that think for long
			answers(50*time.Millisecond, 1)
		}
		expect(flowMost)
		if n := f.request(); n != mostRequest {
			t.Errorf("requests of %d bytes", n)
		}
		answers(time.Second, 100)
		expect(flowLeast)
		if n := f.request(); n != leastRequest {
			t.Errorf("requests of %d bytes", n)
		}
		// Another route, with a longer round trip.
		time.Sleep(baseFor + time.Second)
		answers(90*time.Millisecond, 100)
		expect(flowMost)
	})
}

func TestRaise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(10)
		m.reserve = 0
		var order []string
		wait := func(name string, c *claim) {
			go func() {
				if m.acquireFor(t.Context(), 10, c) == nil {
					order = append(order, name)
				}
			}()
			synctest.Wait()
		}
		raised := newClaim(Background)
		wait("first", newClaim(Demand))
		wait("fill", newClaim(Background))
		wait("raised", raised)
		wait("replay", newClaim(Replay))
		raised.raise(Demand, m)
		raised.raise(Ahead, m) // less urgent than it is: nothing
		for range 4 {
			m.release(10)
			synctest.Wait()
		}
		if got := fmt.Sprint(order); got != "[first raised replay fill]" {
			t.Errorf("order is %s", got)
		}
		if m.free != 10 {
			t.Errorf("%d units are free", m.free)
		}
		if m.reserve = 4; m.try(7) || !m.try(6) || m.free != 4 {
			t.Errorf("%d units are free after a try", m.free)
		}
	})
}

// TestPace: a request is slow that takes longer than nearly all did, whatever its size.
func TestPace(t *testing.T) {
	var p pace
	for i := range paceLeast {
		if _, ok := p.slow(1000); ok {
			t.Fatalf("a judgement after %d requests", i)
		}
		p.observe(10*time.Millisecond, 10*time.Millisecond+1000*time.Microsecond, 1000)
	}
	if d, ok := p.slow(5000); !ok || d != 15*time.Millisecond {
		t.Errorf("slow after %s", d)
	}
	if !p.hedge() || p.hedge() {
		t.Error("a tenth may be hedged")
	}
	for range 4 * paceSamples {
		p.observe(time.Second, time.Second, 1000)
	}
	if d, _ := p.slow(5000); d != time.Second {
		t.Errorf("slow after %s", d)
	}
	for range hedgeMost {
		if !p.hedge() {
			t.Error("nothing was saved up")
		}
	}
	if p.hedge() {
		t.Error("more is saved up than may be")
	}
}

// placed is a source with a place.
type placed struct {
	*memory
	place string
}

func (p placed) Place() string { return p.place }

// TestWays: what a near registry's answers tell says nothing of the way to a far one: the far one's
// fills keep their share of the line, its readers' requests go over several connections, and none
// is sent twice for being slower than the near one's. And the other way round.
func TestWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(0, 0)
		layerAt := func(place string) *Layer {
			return setup(t, newSample(t), func(f *fixture, o *Options) {
				o.Budget, o.Blob = b, placed{f.blob, place}
			}).Layer
		}
		near, far := layerAt("mirror.test"), layerAt("registry.test")
		for range 100 {
			for i, l := range []*Layer{near, far} {
				rtt := []time.Duration{time.Millisecond, 50 * time.Millisecond}[i]
				l.way().flow.answered(rtt, true)
				l.way().pace.observe(rtt, 2*rtt, 100_000)
			}
		}
		if w := far.way().flow.window; w != flowMost {
			t.Errorf("the far one's fills have %d bytes under way, want %d", w, flowMost)
		}
		if n := far.stripes(Demand, 1<<20); n < 2 {
			t.Errorf("the far one's requests go over %d connection", n)
		}
		if n := near.stripes(Demand, 1<<20); n != 1 {
			t.Errorf("the near one's requests go over %d connections", n)
		}
		if d, ok := far.way().pace.slow(100_000); !ok || d < 90*time.Millisecond {
			t.Errorf("the far one's requests are slow from %v on", d)
		}
		if d, ok := near.way().pace.slow(100_000); !ok || d > 5*time.Millisecond {
			t.Errorf("the near one's requests are slow from %v on", d)
		}
		for i := range 3 * waysMost {
			b.way(fmt.Sprint(i))
		}
		if n := len(b.ways.byPlace); n > waysMost {
			t.Errorf("%d ways are remembered", n)
		}
	})
}
