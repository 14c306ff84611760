package layer

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
)

// TestLoan: whoever waits for a source that is down, however many they are and whatever for, does
// not hold up others; and reads on when it is back.
func TestLoan(t *testing.T) {
	// Decoders that all share are not made inside a bubble.
	warm := setup(t, newSample(t), nil)
	must(t, warm.Fill(t.Context(), 0, warm.Size()))
	for _, stuck := range []line.Priority{line.Demand, line.Background} {
		for _, other := range []line.Priority{line.Demand, line.Background} {
			t.Run(fmt.Sprintf("%d waits, %d comes", stuck, other), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var down atomic.Bool
					down.Store(true)
					budget := line.New(300<<10, 1<<20)
					a := setup(t, newSample(t), func(f *fixture, o *Options) {
						o.Budget = budget
						f.blob.fault = func(ctx context.Context, _ int, _ []byte, _ int64) error {
							for down.Load() {
								select {
								case <-time.After(time.Second):
								case <-ctx.Done():
									return context.Cause(ctx)
								}
							}
							return nil
						}
					})
					b := setup(t, newSample(t), func(_ *fixture, o *Options) { o.Budget = budget })
					var waiting sync.WaitGroup
					for i := range a.s.spans {
						waiting.Go(func() {
							if off, n := a.span(i); stuck == line.Demand {
								a.mustRead(off, n)
							} else if err := a.Fetch(t.Context(), off, n, stuck); err != nil {
								t.Error(err)
							}
						})
					}
					synctest.Wait()
					if n := a.blob.calls.Load(); n < 5 {
						t.Fatalf("%d requests are under way: the test is of no use", n)
					}
					// A few rounds, as each lets as many go on as there is room for.
					start := time.Now()
					for i := range 10 {
						if off, n := b.span(i); other == line.Demand {
							b.mustRead(off, n)
						} else if err := b.Fetch(t.Context(), off, n, other); err != nil {
							t.Error(err)
						}
					}
					if took := time.Since(start); took > 10*2*time.Second {
						t.Errorf("others waited %v", took)
					}
					down.Store(false)
					start = time.Now()
					waiting.Wait()
					if took := time.Since(start); took > 2*time.Second {
						t.Errorf("took %v after the outage", took)
					}
					a.wait()
					b.wait()
					a.nothingTaken()
				})
			})
		}
	}
}
