package line

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestHosts: what a near host's answers tell says nothing of the way to a far one: the far one's
// fills keep their share of the line, and its readers' requests go over several connections. And
// the other way round.
func TestHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(0, 0)
		near, far := b.Host("mirror.test"), b.Host("registry.test")
		for range 100 {
			for i, h := range []*Host{near, far} {
				rtt := []time.Duration{time.Millisecond, 50 * time.Millisecond}[i]
				h.flow.answered(rtt, true)
			}
		}
		if w := far.flow.window; w != flowMost {
			t.Errorf("the far one's fills have %d bytes under way, want %d", w, flowMost)
		}
		if n := far.stripes(Demand, 1<<20); n < 2 {
			t.Errorf("the far one's requests go over %d connection", n)
		}
		if n := near.stripes(Demand, 1<<20); n != 1 {
			t.Errorf("the near one's requests go over %d connections", n)
		}
		for i := range 3 * hostsMost {
			b.Host(fmt.Sprint(i))
		}
		if n := len(b.hosts.byName); n > hostsMost {
			t.Errorf("%d hosts are remembered", n)
		}
	})
}

// readRange reads [off, end) by an admitted request.
func readRange(
	t *testing.T, h *Host, off, end int64, prio Priority, open Opener,
) (string, error) {
	t.Helper()
	c := NewUrgency(prio)
	g, err := h.budget.Admit(t.Context(), h, end-off, c)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	r := g.Request(t.Context(), c, []Range{{off, end - off}}, open)
	defer r.Close()
	b, err := r.Get(t.Context(), off, end-off)
	return string(b), err
}

// mustRead is readRange for what has to come, and be right.
func mustRead(t *testing.T, h *Host, off, end int64, prio Priority, src *blob) {
	t.Helper()
	if got, err := readRange(t, h, off, end, prio, src.open); err != nil || got != src.b[off:end] {
		t.Errorf("read [%d, %d): %d bytes, %v", off, end, len(got), err)
	}
}

// nothingTaken fails the test if something was not given back.
func nothingTaken(t *testing.T, b *Budget, h *Host) {
	t.Helper()
	for name, m := range map[string]*Meter{"fetch": b.Fetch, "decode": b.Decode} {
		if m.free != m.size {
			t.Errorf("%s: %d of %d came back", name, m.free, m.size)
		}
	}
	if h.flow.used != 0 || b.lines.Load() != 0 {
		t.Errorf("%d bytes and %d connections are still counted", h.flow.used, b.lines.Load())
	}
}
