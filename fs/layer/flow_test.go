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
		f := newFlow()
		f.window = 6 << 20
		var mu sync.Mutex
		var sent []string
		ask := func(name string) context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				err := f.acquire(ctx, 3<<20)
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
		f.hold() // a reader comes
		f.hold()
		f.arrived(6 << 20)
		expect()
		f.release()
		expect()
		f.release() // and the last one goes
		expect("d")
		ask("e")
		expect("e")
		f.hold()
		ask("f")
		ask("g")
		f.arrived(6 << 20)
		time.Sleep(flowPatience - time.Millisecond)
		expect()
		time.Sleep(time.Millisecond) // it waits for long: half of the window
		expect("f")
		f.arrived(3 << 20)
		expect("g")
		f.arrived(3 << 20)
		f.release()
		if f.used != 0 || len(f.queue) != 0 {
			t.Errorf("%d bytes are under way, %d wait", f.used, len(f.queue))
		}
	})
}

// TestFlowWindow: what is under way is the rate times a round trip and the queue that is aimed at.
func TestFlowWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlow()
		// come has bytes under way for d, in which they come in at rate, without a reader that waits.
		come := func(rate float64, d time.Duration) {
			const piece = 64 << 10
			for end := time.Now().Add(d); time.Now().Before(end); {
				must(t, f.acquire(t.Context(), 2*piece))
				time.Sleep(time.Duration(piece / rate * 1e9))
				f.arrived(piece)
				f.dropped(piece)
			}
		}
		near := func(want int64) {
			t.Helper()
			if f.window < want*9/10 || f.window > want*11/10 {
				t.Errorf("window is %d, want %d", f.window, want)
			}
		}
		come(100e6, time.Second)
		near(flowFirst) // nothing is known about the round trip
		f.answered(50 * time.Millisecond)
		f.answered(500 * time.Millisecond)
		come(100e6, time.Second)
		near(6_000_000)
		// A pause says nothing about the rate.
		time.Sleep(time.Hour)
		come(100e6, time.Second)
		near(6_000_000)
		come(50e6, rateInterval*5)
		near(6_000_000)
		come(50e6, time.Second)
		near(3_000_000)
		come(1e6, 3*time.Second)
		near(flowLeast)
		come(1e9, time.Second)
		near(flowMost)
		// Another route, with a longer round trip.
		come(50e6, time.Second)
		time.Sleep(baseFor)
		f.answered(90 * time.Millisecond)
		come(50e6, time.Second)
		near(5_000_000)
		if n := f.request(); n < 5_000_000/5 || n > 5_000_000/3 {
			t.Errorf("requests of %d bytes", n)
		}
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
