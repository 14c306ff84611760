package pull

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
)

// TestCores: of those who wait for a core the largest gets it, and who gives up leaves none unused.
func TestCores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cores{free: 1}
		if err := c.acquire(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		came := make(chan int64, 9)
		ask := func(ctx context.Context, size int64) {
			go func() {
				if c.acquire(ctx, size) == nil {
					came <- size
				}
			}()
			synctest.Wait()
		}
		gone, goes := context.WithCancel(t.Context())
		ask(t.Context(), 1)
		ask(gone, 9)
		ask(t.Context(), 3)
		ask(t.Context(), 2)
		goes()
		synctest.Wait()
		for range 3 {
			c.release()
			synctest.Wait()
		}
		close(came)
		var got []int64
		for size := range came {
			got = append(got, size)
		}
		if !slices.Equal(got, []int64{3, 2, 1}) {
			t.Errorf("they came in the order %v", got)
		}
		c.release()
		if c.free != 1 || len(c.waiting) != 0 {
			t.Errorf("%d cores are free, %d wait", c.free, len(c.waiting))
		}
	})
}
