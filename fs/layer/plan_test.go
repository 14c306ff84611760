package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/index"
)

// table makes spans of 1000 device bytes at the given places in the blob.
func table(at ...index.Span) index.Spans {
	for i := range at {
		at[i].Device, at[i].Size = int64(i)*1000, 1000
	}
	return at
}

func at(blob, size int64) index.Span { return index.Span{Blob: blob, BlobSize: size} }

func windowed(blob, size, off, n int64) index.Span {
	return index.Span{Blob: blob, BlobSize: size, Codec: index.Deflate, Window: index.Range{Off: off, Size: n}}
}

func TestPlan(t *testing.T) {
	near := table(at(10, 100), at(109, 100), at(209, 100), at(309, 100))
	for name, c := range map[string]struct {
		spans   index.Spans
		missing []int
		request int64
		want    []extent
	}{
		"nothing":               {near, nil, 1000, nil},
		"neighbours":            {near, []int{0, 1, 2, 3}, 1000, []extent{{0, 4}}},
		"a hole":                {near, []int{0, 2, 3}, 1000, []extent{{0, 1}, {2, 2}}},
		"too many bytes":        {near, []int{0, 1, 2, 3}, 199, []extent{{0, 2}, {2, 1}, {3, 1}}},
		"one with too many":     {near, []int{1, 2}, 1, []extent{{1, 1}, {2, 1}}},
		"far apart in the blob": {table(at(0, 10), at(11+maxGap, 10), at(21+2*maxGap, 10)), []int{0, 1, 2}, 1 << 30, []extent{{0, 1}, {1, 2}}},
		"windows together":      {table(windowed(0, 10, 0, 5), at(10, 10), windowed(20, 10, 5, 5)), []int{0, 1, 2}, 1000, []extent{{0, 3}}},
		"windows backwards":     {table(windowed(0, 10, 5, 5), windowed(10, 10, 0, 5)), []int{0, 1}, 1000, []extent{{0, 2}}},
		"windows far apart":     {table(windowed(0, 10, 1<<40, 5), windowed(10, 10, 0, 5)), []int{0, 1}, 1 << 50, []extent{{0, 1}, {1, 1}}},
		"windows count":         {table(windowed(0, 10, 0, 60), windowed(10, 10, 60, 60)), []int{0, 1}, 100, []extent{{0, 1}, {1, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := plan(c.spans, c.missing, c.request); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestWindowRange(t *testing.T) {
	s := table(at(0, 10), windowed(10, 10, 100, 5), at(20, 10), windowed(30, 10, 105, 7))
	for _, c := range []struct {
		e    extent
		want byteRange
	}{
		{extent{0, 1}, byteRange{}}, {extent{0, 2}, byteRange{100, 105}}, {extent{0, 4}, byteRange{100, 112}}, {extent{2, 2}, byteRange{105, 112}},
	} {
		if got := c.e.windowRange(s); got != c.want {
			t.Errorf("windows of %v are %v, want %v", c.e, got, c.want)
		}
	}
}

// TestMeter writes down in which order requests are granted.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(100) // reserve 25
		var log []string
		ask := func(name string, n int64, prio Priority) context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				if err := m.acquire(ctx, n, prio); err == nil {
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
		m.release(95)
		expect("fill into the reserve")
		m.release(6)
		ask("fill of everything", 100, Background)
		expect("fill of everything")
		ask("demand", 1, Demand)
		ask("fill", 1, Background)
		m.release(1)
		expect("demand")
		m.release(99)
		expect("fill")
		m.release(2)
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
		first, second := m.hold(time.Minute), m.hold(time.Minute)
		granted := func(c *claim) chan time.Duration {
			ch := make(chan time.Duration, 1)
			go func() {
				if err := m.acquireFor(t.Context(), 1, c); err != nil {
					t.Error(err)
				}
				m.release(1)
				ch <- time.Since(start)
			}()
			return ch
		}
		urgent := newClaim(Replay)
		raised, demand, replay := granted(urgent), granted(newClaim(Demand)), granted(newClaim(Replay))
		time.Sleep(time.Second)
		urgent.raise(Demand, m)
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
		defer m.hold(time.Minute)()
		if got := <-granted(newClaim(Replay)); got != 62*time.Second {
			t.Errorf("held until %v", got)
		}
	})
}
