package fetch

import (
	"testing"
	"time"
)

// TestNear has readers wait while a fill is under way: what follows the latest of them comes first,
// then what follows the others, then the rest.
func TestNear(t *testing.T) {
	run(t, Options{FillRequests: 1}, func(t *testing.T, s *Scheduler, l *log) {
		a, b := l.layer("a", 30_000), l.layer("b", 10)
		for i := range a.n {
			// missing: 0 to 3, 7 to 10, and one that is farther than nearAfter from all of them
			a.present[i] = i >= 4 && i < 7 || i > 10 && i != 29_000
		}
		s.Add(a.id(), a)
		s.Add(b.id(), b)
		s.Near(a.id(), 0, 1000) // nothing is filled yet
		s.Fill(a.id())
		s.Fill(b.id())
		expect(t, l, "fill a 0+2")
		s.Near(b.id(), 1000, 7500)
		s.Near(a.id(), 5000, 6000)
		s.Near(a.id(), 6500, 7000) // in what follows the one before, in its place
		time.Sleep(5500 * time.Millisecond)
		expect(t, l, "near a 7+2", "near a 9+2", "near b 7+2", "near b 9+1", "fill a 2+2")
		s.Near(b.id(), 2000, 3000)
		time.Sleep(time.Second)
		expect(t, l, "near b 3+2")
		s.Forget(b.id())
		time.Sleep(time.Hour)
		expect(t, l, "fill a 29000+1")
		if n := a.count(); int64(n) != a.n {
			t.Errorf("%d blocks are there", n)
		}
		if n := len(s.spots); n > 0 {
			t.Errorf("%d spots are left", n)
		}
	})
}
