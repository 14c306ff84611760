package fs

import "testing"

func TestPlanFirst(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		requests, later, trees int64
		named                  []int64
		want                   firstPlan
		even                   int64 // of the trees
	}{
		{8, 2, 10 * k, nil, firstPlan{rangePlan{14 * k, 1}, rangePlan{14 * k, 1}}, 10 * k},
		{8, 2, 112 * k, nil, firstPlan{rangePlan{14 * k, 1}, rangePlan{14 * k, 1}}, 14 * k},
		{8, 2, 168 * k, nil, firstPlan{rangePlan{42 * k, 2}, rangePlan{14 * k, 1}}, 42 * k}, // four of two round trips, not twelve
		{8, 0, 168 * k, []int64{420 * k}, firstPlan{rangePlan{98 * k, 3}, rangePlan{98 * k, 3}}, 84 * k},
		// The trees are here first, and what the index names while they are mounted.
		{8, 2, 168 * k, []int64{420 * k}, firstPlan{rangePlan{42 * k, 2}, rangePlan{210 * k, 4}}, 42 * k},
		{8, 2, 700 * k, []int64{420 * k}, firstPlan{rangePlan{210 * k, 4}, rangePlan{210 * k, 4}}, 175 * k},
		{3, 2, 168 * k, nil, firstPlan{rangePlan{98 * k, 3}, rangePlan{14 * k, 1}}, 84 * k},
		{8, 2, 100 << 20, []int64{k}, firstPlan{rangePlan{1 << 20, 7}, rangePlan{1 << 20, 7}}, 1 << 20},
		{8, 2, 0, nil, firstPlan{rangePlan{14 * k, 1}, rangePlan{14 * k, 1}}, 1},
	} {
		got := planFirst(c.requests, c.later, c.trees, c.named)
		if got != c.want {
			t.Errorf("planFirst(%d, %d, %d, %v) = %+v, want %+v", c.requests, c.later, c.trees, c.named, got, c.want)
		}
		if even := got.trees.even(c.trees); even != c.even {
			t.Errorf("%d in ranges of %d, want %d", c.trees, even, c.even)
		}
	}
}
