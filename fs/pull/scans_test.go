package pull

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestScans: however many scans there are, what they hold is within the bound, but for one of them;
// and all end.
func TestScans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var most atomic.Int64
		s := newScans(100, func(used int64) { most.Store(max(most.Load(), used)) })
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				c := s.begin(t.Context())
				defer c.End()
				for range 50 {
					if err := c.Take(1); err != nil {
						t.Error(err)
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		all.Wait()
		if n := most.Load(); n < 100 || n > 150 {
			t.Errorf("%d were taken at a time", n)
		}
		if s.used != 0 || s.over != nil {
			t.Errorf("%d are left", s.used)
		}
	})
}

// TestScansWait: the one that may take more never waits; who waits goes on when it has ended, or
// leaves with its context.
func TestScansWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScans(100, nil)
		large, small := s.begin(t.Context()), s.begin(t.Context())
		for range 10 {
			if err := large.Take(50); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := s.begin(ctx)
		time.AfterFunc(time.Hour, cancel)
		if err := gone.Take(1); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		start := time.Now()
		time.AfterFunc(time.Second, large.End)
		if err := small.Take(200); err != nil || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		gone.End()
		small.End()
		if s.used != 0 || s.over != nil {
			t.Errorf("%d are left", s.used)
		}
	})
}
