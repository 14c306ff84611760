package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/index"
	"golang.org/x/sys/unix"
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
		f := setup(t, newSample(t), func(f *fixture, _ *Options) {
			f.blob.fault = func(context.Context, int, []byte, int64) error {
				time.Sleep(time.Second)
				return nil
			}
		})
		var readers sync.WaitGroup
		off, n := f.span(7)
		for k := range 50 {
			readers.Go(func() { f.mustRead(off+int64(k), n-100) })
		}
		readers.Wait()
		if n := f.blob.calls.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
		st := f.Stats()
		if st.Waits != 50 || st.Waiting != 0 || st.WaitMax != time.Second || st.WaitSum != 50*time.Second {
			t.Errorf("stats are %+v", st)
		}
	})
}

// TestCancel: a fetch ends when its last reader gives up, and not before.
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
		if ended.Load() != 2 || f.Stats().Waiting != 0 {
			t.Errorf("%d of 2 fetches ended; %+v", ended.Load(), f.Stats())
		}
		// A later reader begins anew.
		ready.Store(true)
		f.mustRead(off, n)
		if f.Stats().LastError != nil {
			t.Errorf("giving up counts as an error: %v", f.Stats().LastError)
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

// TestWrongBytes: they are fetched again, so many times; an error that names
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
				if got := f.blob.calls.Load(); got != maxTries {
					t.Errorf("%d requests", got)
				}
				f.wait()
				if f.store.Present(bad) || !f.store.Present(bad-1) || !f.store.Present(bad+1) {
					t.Error("the wrong spans are present")
				}
				wrong.Store(false)
				f.mustRead(off-1, n+2)

				// Wrong once: nobody notices.
				first := true
				at = f.s.spans[20].Blob + 100
				f.blob.fault = func(_ context.Context, _ int, p []byte, off int64) error {
					if first && off <= at && at < off+int64(len(p)) {
						first = false
						p[at-off] ^= 1
					}
					return nil
				}
				f.mustRead(f.span(20))
				if first {
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

// localWindows is a store that has the windows on disk.
type localWindows struct {
	*shaky
	b []byte
}

func (l localWindows) Windows() (io.ReaderAt, error) { return bytes.NewReader(l.b), nil }

func TestLocalWindows(t *testing.T) {
	s := newSample(t)
	ix, err := index.Open(bytes.NewReader(s.index), int64(len(s.index)))
	must(t, err)
	damaged := bytes.Clone(s.windows)
	for i := range damaged {
		damaged[i] ^= 1
	}
	for _, c := range []struct {
		name   string
		local  []byte
		remote bool
		calls  int64
		want   error
	}{
		{name: "local", local: s.windows, remote: true},
		{name: "local only", local: s.windows},
		{name: "damaged", local: damaged, remote: true, calls: 1},
		{name: "damaged, local only", local: damaged, want: index.ErrCorrupt},
		{name: "short", local: s.windows[:10], remote: true, calls: 1},
		{name: "short, local only", local: s.windows[:10], want: errNoWindows},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := setup(t, s, nil)
			o := Options{Blob: f.blob}
			if c.remote {
				o.Windows = f.windows
			}
			l := New(ix, localWindows{f.store, c.local}, o)
			defer l.Close()
			off, n := f.span(9)
			p := make([]byte, n)
			err := l.ReadAt(t.Context(), p, off)
			if !errors.Is(err, c.want) || err == nil && !bytes.Equal(p, s.device[off:off+n]) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if f.windows.calls.Load() != c.calls {
				t.Errorf("%d requests for windows, want %d", f.windows.calls.Load(), c.calls)
			}
		})
	}
}

// TestDiskFull: what cannot be stored is served all the same, and reads next to
// each other do not fetch it again.
func TestDiskFull(t *testing.T) {
	full := true
	f := setup(t, newSample(t), func(f *fixture, _ *Options) {
		f.store.write = func(int) error {
			if full {
				return unix.ENOSPC
			}
			return nil
		}
	})
	off, n := f.span(6)
	for at := off; at < off+n; at += 1000 {
		f.mustRead(at, min(1000, off+n-at))
	}
	if got := f.blob.calls.Load(); got != 1 {
		t.Errorf("%d requests", got)
	}
	f.wait()
	if st := f.Stats(); st.Unwritten != 1 || !errors.Is(st.LastError, unix.ENOSPC) || st.Present != 0 {
		t.Errorf("stats are %+v", st)
	}
	f.mustRead(0, f.Size())
	f.wait()
	if f.completed.Load() != 0 {
		t.Error("a layer without a byte is complete")
	}
	full = false
	f.spares().drop(f.Layer)
	f.mustRead(0, f.Size())
	f.wait()
	if f.completed.Load() != 1 {
		t.Error("completion was not told")
	}
}

func (f *fixture) spares() *spares { return &f.o.Budget.spares }

// TestUnreadable: what the store has and cannot read comes from the source, and
// does not go to the store again.
func TestUnreadable(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(f.span(4))
	f.wait()
	f.store.read = func(off int64) error {
		if f.s.spans.Find(off) == 4 {
			return unix.EIO
		}
		return nil
	}
	f.store.write = func(i int) error {
		if i == 4 {
			t.Error("a span that cannot be read was written again")
		}
		return nil
	}
	off, n := f.span(4)
	f.mustRead(off, n)       // all of it present
	f.mustRead(off-10, n+20) // between two that are missing
	f.wait()
	if st := f.Stats(); st.Unreadable == 0 || !errors.Is(st.LastError, unix.EIO) {
		t.Errorf("stats are %+v", st)
	}
	if got := f.blob.calls.Load(); got > 4 {
		t.Errorf("%d requests", got)
	}
}

// TestReadersDoNotWaitForTheDisk: a reader has its bytes while they are still
// being stored, and so has one that comes then.
func TestReadersDoNotWaitForTheDisk(t *testing.T) {
	stored := make(chan struct{})
	f := setup(t, newSample(t), func(f *fixture, _ *Options) {
		f.store.write = func(int) error { <-stored; return nil }
	})
	off, n := f.span(2)
	f.mustRead(off, n)
	f.mustRead(off, n)
	if f.store.Present(2) || f.blob.calls.Load() != 1 {
		t.Errorf("present: %v, %d requests", f.store.Present(2), f.blob.calls.Load())
	}
	close(stored)
	f.wait()
	if !f.store.Present(2) {
		t.Error("not stored")
	}
	f.mustRead(off, n)
	if f.blob.calls.Load() != 1 {
		t.Errorf("%d requests", f.blob.calls.Load())
	}
}

// TestTightBudget: readers of everything, with a budget for one span at a time.
func TestTightBudget(t *testing.T) {
	s := newSample(t)
	var needBlob, needDevice int64
	for i := range s.spans {
		needBlob = max(needBlob, s.spans[i].BlobSize+s.spans[i].Window.Size)
		needDevice = max(needDevice, s.spans[i].Size)
	}
	var inFlight, most atomic.Int64
	count := func(_ context.Context, _ int, p []byte, _ int64) error {
		n := inFlight.Add(int64(len(p)))
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		time.Sleep(100 * time.Microsecond)
		inFlight.Add(-int64(len(p)))
		return nil
	}
	f := setup(t, s, func(f *fixture, o *Options) {
		f.blob.fault, f.windows.fault = count, count
		o.Budget = NewBudget(needBlob, needDevice)
	})
	var readers sync.WaitGroup
	for k := range 8 {
		readers.Go(func() {
			if k%2 == 0 {
				must(t, f.Fetch(t.Context(), 0, f.Size(), Background))
			} else {
				f.mustRead(int64(k)*1000, f.Size()-int64(k)*1000)
			}
		})
	}
	readers.Wait()
	if most.Load() > needBlob {
		t.Errorf("%d bytes were in flight, the budget is %d", most.Load(), needBlob)
	}
	f.wait()
	for name, m := range map[string]*meter{"fetch": f.o.Budget.fetch, "decode": f.o.Budget.decode} {
		if m.free != m.size {
			t.Errorf("%s budget: %d of %d bytes came back", name, m.free, m.size)
		}
	}
}

func TestTooLarge(t *testing.T) {
	f := setup(t, newSample(t), func(f *fixture, o *Options) { o.Budget = NewBudget(1<<20, 4096) })
	if err := f.read(t.Context(), 0, 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("decoded: %v", err)
	}
	f.Layer.o.Budget = NewBudget(100, 1<<20)
	if err := f.read(t.Context(), 0, 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("blob: %v", err)
	}
	if f.blob.calls.Load() > 0 {
		t.Error("something was fetched")
	}
}

// TestClose ends what is under way.
func TestClose(t *testing.T) {
	f := setup(t, newSample(t), func(f *fixture, _ *Options) { f.blob.fault = hang })
	errs := make(chan error)
	for k := range 5 {
		go func() { errs <- f.read(t.Context(), int64(k)*100_000, 10) }()
	}
	for f.blob.calls.Load() < 5 {
		time.Sleep(time.Millisecond)
	}
	f.Close()
	for range 5 {
		if err := <-errs; !errors.Is(err, errClosed) {
			t.Errorf("error is %v", err)
		}
	}
	if err := f.read(t.Context(), 0, 1); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// lateIndex is an index whose spans cannot be read at first.
type lateIndex struct {
	Index
	err error
}

func (l *lateIndex) Spans() (index.Spans, error) {
	if l.err != nil {
		return nil, l.err
	}
	return l.Index.Spans()
}

func TestSpansError(t *testing.T) {
	f := setup(t, newSample(t), nil)
	ix := &lateIndex{Index: f.index, err: unix.EIO}
	f.index = ix
	if err := f.read(t.Context(), 0, 1); !errors.Is(err, unix.EIO) {
		t.Errorf("error is %v", err)
	}
	ix.err = nil
	f.mustRead(0, 1)
}
