package line

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestMeter writes down in which order requests are granted.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(100) // reserve 25
		var log []string
		ask := func(name string, n int64, prio Priority) context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				if err := m.Acquire(ctx, n, NewUrgency(prio)); err == nil {
					log = append(log, name)
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
			if fmt.Sprint(log) != fmt.Sprint(want) {
				t.Errorf("granted %v, want %v", log, want)
			}
			log = nil
		}
		ask("fill of 70", 70, Background)
		expect("fill of 70")
		ask("fill into the reserve", 6, Background)
		expect()
		ask("demand from the reserve", 20, Demand)
		expect("demand from the reserve")
		cancel := ask("large demand", 90, Demand)
		ask("small demand behind it", 5, Demand)
		expect()
		cancel() // the head leaves, who is behind it fits
		expect("small demand behind it")
		m.Release(95)
		expect("fill into the reserve")
		m.Release(6)
		ask("fill of everything", 100, Background)
		expect("fill of everything")
		ask("demand", 1, Demand)
		ask("fill", 1, Background)
		m.Release(1)
		expect("demand")
		m.Release(99)
		expect("fill")
		m.Release(2)
		if m.free != 100 {
			t.Errorf("%d bytes are free", m.free)
		}
	})
}

// TestMeterHold: a hold keeps all but readers waiting, and not for ever.
func TestMeterHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(2)
		start := time.Now()
		first, second := m.pause(time.Minute), m.pause(time.Minute)
		granted := func(c *Urgency) chan time.Duration {
			ch := make(chan time.Duration, 1)
			go func() {
				if err := m.Acquire(t.Context(), 1, c); err != nil {
					t.Error(err)
				}
				m.Release(1)
				ch <- time.Since(start)
			}()
			return ch
		}
		urgent := NewUrgency(Replay)
		raised := granted(urgent)
		demand, replay := granted(NewUrgency(Demand)), granted(NewUrgency(Replay))
		time.Sleep(time.Second)
		urgent.Raise(Demand, m)
		first()
		first() // once is enough
		time.Sleep(time.Second)
		second()
		for _, c := range []struct {
			got  chan time.Duration
			want time.Duration
		}{{demand, 0}, {raised, time.Second}, {replay, 2 * time.Second}} {
			if got := <-c.got; got != c.want {
				t.Errorf("granted after %v, want %v", got, c.want)
			}
		}
		defer m.pause(time.Minute)()
		if got := <-granted(NewUrgency(Replay)); got != 62*time.Second {
			t.Errorf("held until %v", got)
		}
	})
}

func TestRaise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(10)
		m.reserve = 0
		var order []string
		wait := func(name string, c *Urgency) {
			go func() {
				if m.Acquire(t.Context(), 10, c) == nil {
					order = append(order, name)
				}
			}()
			synctest.Wait()
		}
		raised := NewUrgency(Background)
		wait("first", NewUrgency(Demand))
		wait("fill", NewUrgency(Background))
		wait("raised", raised)
		wait("replay", NewUrgency(Replay))
		raised.Raise(Demand, m)
		raised.Raise(Ahead, m) // less urgent than it is: nothing
		for range 4 {
			m.Release(10)
			synctest.Wait()
		}
		if got := fmt.Sprint(order); got != "[first raised replay fill]" {
			t.Errorf("order is %s", got)
		}
		if m.free != 10 {
			t.Errorf("%d units are free", m.free)
		}
		if m.reserve = 4; m.Try(7) || !m.Try(6) || m.free != 4 {
			t.Errorf("%d units are free after a try", m.free)
		}
	})
}
