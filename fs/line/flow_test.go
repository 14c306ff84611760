package line

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
