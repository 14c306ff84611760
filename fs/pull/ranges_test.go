package pull

import (
	"testing"
	"time"
)

func TestQuickest(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		requests, size int64
		roundTrip      time.Duration
		want           rangePlan
		even           int64
	}{
		{8, 10 * k, 10 * time.Millisecond, rangePlan{14 * k, 1}, 10 * k},
		{8, 66 * k, 50 * time.Millisecond, rangePlan{14 * k, 1}, 13517},
		// a round trip more, and three requests less
		{8, 66 * k, 10 * time.Millisecond, rangePlan{42 * k, 2}, 33 * k},
		{8, 66 * k, time.Millisecond, rangePlan{98 * k, 3}, 66 * k},
		// one round trip would be twelve requests
		{8, 168 * k, 50 * time.Millisecond, rangePlan{42 * k, 2}, 42 * k},
		{3, 168 * k, 50 * time.Millisecond, rangePlan{98 * k, 3}, 84 * k},
		{8, 100 << 20, 10 * time.Millisecond, rangePlan{1 << 20, 7}, 1 << 20},
		{8, 0, 0, rangePlan{14 * k, 1}, 1},
	} {
		got := quickest(c.requests, c.size, c.roundTrip)
		if got != c.want {
			t.Errorf("quickest(%d, %d, %v) = %+v, want %+v", c.requests, c.size, c.roundTrip, got,
				c.want)
		}
		if even := got.even(c.size); even != c.even {
			t.Errorf("%d in ranges of %d, want %d", c.size, even, c.even)
		}
	}
}
