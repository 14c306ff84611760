package layer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// hang is a fault: it waits for ctx, and says then what was wrong all the time.
func hang(ctx context.Context, _ int, _ []byte, _ int64) error {
	<-ctx.Done()
	return fmt.Errorf("%w; last error: 503 from registry", context.Cause(ctx))
}

func TestNeighboursAreOneRequest(t *testing.T) {
	f := setup(t, newSample(t), nil)
	must(t, f.Fill(t.Context(), 0, f.Size()))
	if n, w := f.blob.calls.Load(), f.windows.calls.Load(); n != 1 || w != 1 {
		t.Errorf("%d requests for the blob, %d for the windows", n, w)
	}
	if got := f.Stats().Fetched; got > int64(len(f.s.blob)+len(f.s.windows)) {
		t.Errorf("%d bytes were fetched of %d", got, len(f.s.blob)+len(f.s.windows))
	}
}

// TestWindowsComeWithTheBlob: neither request waits for the other.
func TestWindowsComeWithTheBlob(t *testing.T) {
	var both sync.WaitGroup
	both.Add(2)
	meet := func(context.Context, int, []byte, int64) error {
		both.Done()
		both.Wait()
		return nil
	}
	f := setup(t, newSample(t), func(f *fixture, _ *Options) { f.blob.fault, f.windows.fault = meet, meet })
	off, n := f.span(4)
	if f.s.spans[4].Window.Size == 0 {
		t.Fatal("span has no window")
	}
	f.mustRead(off, n)
}

func TestOneFetchForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits atomic.Int64
		f := setup(t, newSample(t), func(f *fixture, o *Options) {
			f.blob.fault = delay(time.Second)
			o.Waited = func(_, _ int64) { waits.Add(1) }
		})
		var readers sync.WaitGroup
		start := time.Now()
		off, n := f.span(7)
		for k := range 50 {
			readers.Go(func() { f.mustRead(off+int64(k), n-100) })
		}
		readers.Wait()
		if n := f.blob.calls.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
		if took := time.Since(start); waits.Load() != 50 || f.Stats().Waiting != 0 || took != time.Second {
			t.Errorf("%d waited, %s; %+v", waits.Load(), took, f.Stats())
		}
	})
}

// TestCancel: a fetch ends some seconds after its last reader has left, and not before.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int64
		var ready atomic.Bool
		f := setup(t, newSample(t), func(f *fixture, _ *Options) {
			f.blob.fault = func(ctx context.Context, _ int, _ []byte, _ int64) error {
				for !ready.Load() {
					select {
					case <-ctx.Done():
						ended.Add(1)
						return ctx.Err()
					case <-time.After(time.Second):
					}
				}
				return nil
			}
		})
		off, n := f.span(3)
		start := func(off, n int64) (context.CancelFunc, chan error) {
			ctx, cancel := context.WithCancel(t.Context())
			err := make(chan error, 1)
			go func() { err <- f.read(ctx, off, n) }()
			synctest.Wait()
			return cancel, err
		}
		cancel1, err1 := start(off, n)
		cancel2, err2 := start(off+1, n) // and the span behind it
		cancel1()
		if err := <-err1; !errors.Is(err, context.Canceled) {
			t.Errorf("first: %v", err)
		}
		synctest.Wait()
		if ended.Load() != 0 {
			t.Error("the fetch ended though somebody waits")
		}
		cancel2()
		if err := <-err2; !errors.Is(err, context.Canceled) {
			t.Errorf("second: %v", err)
		}
		synctest.Wait()
		if ended.Load() != 0 || f.Stats().Waiting != 0 {
			t.Errorf("%d of 2 fetches ended at once; %+v", ended.Load(), f.Stats())
		}
		time.Sleep(linger)
		synctest.Wait()
		if f.nothingTaken(); ended.Load() != 2 || len(f.flights) != 0 {
			t.Errorf("%d of 2 fetches ended; %d flights are left", ended.Load(), len(f.flights))
		}
		// A later reader begins anew.
		ready.Store(true)
		f.mustRead(off, n)
		if f.Stats().LastError != nil {
			t.Errorf("giving up counts as an error: %v", f.Stats().LastError)
		}
	})
}

// delay is a fault: the bytes take d.
func delay(d time.Duration) func(context.Context, int, []byte, int64) error {
	return func(ctx context.Context, _ int, _ []byte, _ int64) error { return sleep(ctx, d) }
}

// TestInterruptedReaderGetsOn: a reader that is interrupted all the time and comes back gets its
// bytes as soon as one that is not, by as many requests.
func TestInterruptedReaderGetsOn(t *testing.T) {
	for _, ms := range []time.Duration{1, 10, 100} {
		every := ms * time.Millisecond
		synctest.Test(t, func(t *testing.T) {
			const takes = 3 * linger
			f := setup(t, newSample(t), func(f *fixture, _ *Options) {
				f.blob.fault = delay(takes)
			})
			off, n := f.span(3)
			start, tries := time.Now(), 0
			for ; ; tries++ {
				ctx, cancel := context.WithTimeout(t.Context(), every)
				err := f.read(ctx, off, n)
				if cancel(); err == nil {
					break
				}
				if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 2*takes {
					t.Fatalf("every %s: %d requests: %v", every, f.blob.calls.Load(), err)
				}
				time.Sleep(time.Microsecond)
			}
			f.wait()
			if took := time.Since(start); took > takes+every || f.blob.calls.Load() != 1 {
				t.Errorf("every %s: %s, %d tries, %d requests", every, took, tries, f.blob.calls.Load())
			}
		})
	}
}

// TestInterruptedIsKept: what an interrupted reader has begun to fetch is there when it comes back.
func TestInterruptedIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, newSample(t), func(f *fixture, _ *Options) {
			f.blob.fault = delay(linger - 1)
		})
		off, n := f.span(3)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := f.read(ctx, off, n); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		time.Sleep(linger)
		synctest.Wait()
		if !f.store.Present(3) {
			t.Error("the span is not in the store")
		}
		start := time.Now()
		f.mustRead(off, n)
		if time.Since(start) > 0 || f.blob.calls.Load() != 1 {
			t.Errorf("read again: %s, %d requests", time.Since(start), f.blob.calls.Load())
		}
	})
}

// TestCloseEndsLingering: Close waits for no fetch that nobody waits for.
func TestCloseEndsLingering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, newSample(t), func(f *fixture, _ *Options) { f.blob.fault = hang })
		off, n := f.span(3)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := f.read(ctx, off, n); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		start := time.Now()
		if f.Close(); time.Since(start) > 0 {
			t.Errorf("Close took %s", time.Since(start))
		}
	})
}

// TestDeadline: a read waits so long and no longer, says why, and the next one
// succeeds.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, newSample(t), func(f *fixture, o *Options) {
			f.blob.fault = hang
			o.Deadline = 5 * time.Minute
		})
		off, n := f.span(3)
		start := time.Now()
		err := f.read(t.Context(), off, n)
		if !errors.Is(err, ErrDeadline) || !strings.Contains(err.Error(), "503 from registry") || !strings.Contains(err.Error(), string(f.s.header.Layer)) {
			t.Errorf("error is %v", err)
		}
		if d := time.Since(start); d != 5*time.Minute {
			t.Errorf("waited %s", d)
		}
		st := f.Stats()
		if st.LastError == nil || !strings.Contains(st.LastError.Error(), "503") || !st.LastErrorAt.Equal(time.Now()) {
			t.Errorf("stats are %+v", st)
		}
		f.blob.fault = nil
		f.mustRead(off, n)
	})
}

// TestDeadlineOnce: who asks again at once for some of what a read was refused does not wait for as
// long once more; somewhat later it does.
func TestDeadlineOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, newSample(t), func(f *fixture, o *Options) {
			f.blob.fault = hang
			o.Deadline = 5 * time.Minute
		})
		off, n := f.span(3)
		for _, c := range []struct{ pause, waits time.Duration }{
			{0, 5 * time.Minute}, {0, hasty}, {againFor / 2, hasty}, {againFor, 5 * time.Minute},
		} {
			time.Sleep(c.pause)
			start := time.Now()
			if err := f.read(t.Context(), off+n/2, 1); !errors.Is(err, ErrDeadline) {
				t.Errorf("error is %v", err)
			}
			if d := time.Since(start); d != c.waits {
				t.Errorf("waited %s, want %s", d, c.waits)
			}
		}
		time.Sleep(againFor / 2)
		f.blob.fault = nil
		f.mustRead(off, n)
	})
}

// TestDeadlineIsTheReadersOwn: who comes later may wait longer.
func TestDeadlineIsTheReadersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, newSample(t), func(f *fixture, o *Options) {
			f.blob.fault = func(context.Context, int, []byte, int64) error {
				time.Sleep(6 * time.Minute)
				return nil
			}
		})
		off, n := f.span(3)
		var readers sync.WaitGroup
		readers.Go(func() {
			if err := f.read(t.Context(), off, n); !errors.Is(err, ErrDeadline) {
				t.Errorf("first reader: %v", err)
			}
		})
		time.Sleep(2 * time.Minute)
		f.mustRead(off, n)
		readers.Wait()
		if f.blob.calls.Load() != 1 {
			t.Errorf("%d requests", f.blob.calls.Load())
		}
	})
}

// TestSourceErrors: an error reaches those who wait, and is not kept.
func TestSourceErrors(t *testing.T) {
	gone := errors.New("404 from registry")
	for name, src := range map[string]func(*fixture) *memory{
		"blob":    func(f *fixture) *memory { return f.blob },
		"windows": func(f *fixture) *memory { return f.windows },
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, newSample(t), nil)
			src(f).fault = func(context.Context, int, []byte, int64) error { return gone }
			off, n := f.span(9)
			if err := f.read(t.Context(), off, n); !errors.Is(err, gone) {
				t.Errorf("error is %v", err)
			}
			if !errors.Is(f.Stats().LastError, gone) {
				t.Errorf("last error is %v", f.Stats().LastError)
			}
			src(f).fault = nil
			f.mustRead(off, n)
		})
	}
}

// TestWrongBytes: they are fetched again, so many times or until the deadline; an error that names
// layer and span is all that comes of them.
func TestWrongBytes(t *testing.T) {
	for name, src := range map[string]func(*fixture) *memory{
		"blob":    func(f *fixture) *memory { return f.blob },
		"windows": func(f *fixture) *memory { return f.windows },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := setup(t, newSample(t), nil)
				const bad = 9
				at := f.s.spans[bad].Blob + f.s.spans[bad].BlobSize/2
				if name == "windows" {
					at = f.s.spans[bad].Window.Off
				}
				var wrong atomic.Bool
				wrong.Store(true)
				src(f).fault = func(_ context.Context, _ int, p []byte, off int64) error {
					if wrong.Load() && off <= at && at < off+int64(len(p)) {
						p[at-off] ^= 1
					}
					return nil
				}
				off, n := f.span(bad)
				err := f.read(t.Context(), off-1, n+2)
				if !errors.Is(err, index.ErrCorrupt) || !strings.Contains(err.Error(), string(f.s.header.Layer)) || !strings.Contains(err.Error(), "span 9") {
					t.Errorf("error is %v", err)
				}
				if got := f.blob.calls.Load(); got <= maxTries {
					t.Errorf("%d requests for a reader that waits", got)
				}
				f.wait()
				before := f.blob.calls.Load()
				if err := f.Fetch(t.Context(), off, n, line.Background); !errors.Is(err, index.ErrCorrupt) {
					t.Errorf("error in the background is %v", err)
				}
				if got := f.blob.calls.Load() - before; got != maxTries {
					t.Errorf("%d requests in the background", got)
				}
				f.wait()
				if f.store.Present(bad) || !f.store.Present(bad-1) || !f.store.Present(bad+1) {
					t.Error("the wrong spans are present")
				}
				wrong.Store(false)
				f.mustRead(off-1, n+2)

				f.wait()

				// Wrong once: nobody notices.
				var first atomic.Bool
				first.Store(true)
				at = f.s.spans[20].Blob + 100
				f.blob.fault = func(_ context.Context, _ int, p []byte, off int64) error {
					if off <= at && at < off+int64(len(p)) && first.CompareAndSwap(true, false) {
						p[at-off] ^= 1
					}
					return nil
				}
				f.mustRead(f.span(20))
				if first.Load() {
					t.Error("the fault did not happen")
				}
			})
		})
	}
}

// suspicious is a source that returns other bytes once it is told that they were
// wrong.
type suspicious struct {
	memory
	good atomic.Bool
}

func (s *suspicious) Suspect(off, n int64) { s.good.Store(true) }

func TestSuspect(t *testing.T) {
	src := &suspicious{}
	f := setup(t, newSample(t), func(f *fixture, o *Options) {
		src.b = f.s.blob
		src.fault = func(_ context.Context, _ int, p []byte, _ int64) error {
			if !src.good.Load() {
				clear(p)
			}
			return nil
		}
		o.Blob = src
	})
	f.mustRead(f.span(2))
	if src.calls.Load() != 2 {
		t.Errorf("%d requests", src.calls.Load())
	}
}
