package fs

import "testing"

func TestPlanFirst(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		requests int64
		sizes    []int64
		want     firstPlan
		even     int64 // of the first
	}{
		{8, []int64{10 * k}, firstPlan{14 * k, 1}, 10 * k},
		{8, []int64{112 * k}, firstPlan{14 * k, 1}, 14 * k},
		{8, []int64{168 * k}, firstPlan{42 * k, 2}, 42 * k}, // four of two round trips, not eight
		{8, []int64{168 * k, 420 * k}, firstPlan{98 * k, 3}, 84 * k},
		{3, []int64{168 * k}, firstPlan{98 * k, 3}, 84 * k},
		{8, []int64{700 * k, 420 * k}, firstPlan{210 * k, 4}, 175 * k},
		{8, []int64{100 << 20}, firstPlan{1 << 20, 7}, 1 << 20},
		{8, []int64{0}, firstPlan{14 * k, 1}, 1},
		{8, nil, firstPlan{14 * k, 1}, 0},
	} {
		got := planFirst(c.requests, c.sizes)
		if got != c.want {
			t.Errorf("planFirst(%d, %v) = %+v, want %+v", c.requests, c.sizes, got, c.want)
		}
		if len(c.sizes) > 0 && got.even(c.sizes[0]) != c.even {
			t.Errorf("%d in ranges of %d, want %d", c.sizes[0], got.even(c.sizes[0]), c.even)
		}
	}
}
