package fs

import "testing"

func TestFewestRounds(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		requests, size int64
		want           rangePlan
		even           int64
	}{
		{8, 10 * k, rangePlan{14 * k, 1}, 10 * k},
		{8, 112 * k, rangePlan{14 * k, 1}, 14 * k},
		{8, 168 * k, rangePlan{42 * k, 2}, 42 * k}, // four of two round trips, not twelve
		{3, 168 * k, rangePlan{98 * k, 3}, 84 * k},
		{8, 100 << 20, rangePlan{1 << 20, 7}, 1 << 20},
		{8, 0, rangePlan{14 * k, 1}, 1},
	} {
		got := fewestRounds(c.requests, c.size)
		if got != c.want {
			t.Errorf("fewestRounds(%d, %d) = %+v, want %+v", c.requests, c.size, got, c.want)
		}
		if even := got.even(c.size); even != c.even {
			t.Errorf("%d in ranges of %d, want %d", c.size, even, c.even)
		}
	}
}
