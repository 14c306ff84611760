package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"golang.org/x/sys/unix"
)

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
	if st := f.Stats(); f.counters.unwritten.Load() != 1 || !errors.Is(st.LastError, unix.ENOSPC) || st.Present != 0 {
		t.Errorf("stats are %+v", st)
	}
	f.mustRead(0, f.Size())
	f.wait()
	if f.completed.Load() != 0 {
		t.Error("a layer without a byte is complete")
	}
	full = false
	f.o.Budget.Spares.Forget(f.Layer)
	f.mustRead(0, f.Size())
	f.wait()
	if f.completed.Load() != 1 {
		t.Error("completion was not told")
	}
}

// TestUnreadable: what the store has and cannot read is given up, comes from the source, and is
// stored anew. Where that does not help it is served from memory.
func TestUnreadable(t *testing.T) {
	var told atomic.Int64
	f := setup(t, newSample(t), func(_ *fixture, o *Options) {
		o.Unreadable = func() { told.Add(1) }
	})
	f.mustRead(f.span(4))
	f.wait()
	var bad atomic.Bool
	bad.Store(true)
	f.store.read = func(off int64) error {
		if bad.Load() && f.s.spans.Find(off) == 4 {
			return unix.EIO
		}
		return nil
	}
	var written atomic.Int64
	f.store.write = func(i int) error {
		if i == 4 {
			written.Add(1)
		}
		return nil
	}
	off, n := f.span(4)
	f.mustRead(off, n) // all of it present
	f.wait()
	if written.Load() != 1 || !f.store.Present(4) {
		t.Errorf("written %d times, present: %v", written.Load(), f.store.Present(4))
	}
	calls := f.blob.calls.Load()
	bad.Store(false)
	f.mustRead(off, n)
	if f.blob.calls.Load() != calls {
		t.Error("what was stored anew was fetched again")
	}
	bad.Store(true)
	f.mustRead(off, n)
	f.mustRead(off-10, n+20) // between two that are missing
	f.mustRead(off, n)
	f.wait()
	if st := f.Stats(); told.Load() == 0 || !errors.Is(st.LastError, unix.EIO) {
		t.Errorf("told %d times, stats are %+v", told.Load(), st)
	}
	got := f.blob.calls.Load() - calls
	if got > 3 || written.Load()-1 > got {
		t.Errorf("%d requests, written %d times", got, written.Load())
	}
}

// TestUnreadableForAWhile: an error that says nothing about the bytes costs none.
func TestUnreadableForAWhile(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(f.span(4))
	f.wait()
	f.store.read = func(int64) error { return unix.EMFILE }
	f.mustRead(f.span(4))
	f.wait()
	if !f.store.Present(4) {
		t.Error("a span was given up because there were too many files open")
	}
}

// TestLostBySync: a layer whose spans are taken back, as a sync has failed, is complete when they
// have come again.
func TestLostBySync(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	f.wait()
	f.store.sync = func() error { return unix.EIO }
	if err := f.store.Mark(store.Complete); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	f.store.sync = nil
	if f.store.Present(4) {
		t.Fatal("nothing was taken back")
	}
	f.mustRead(0, f.Size())
	f.wait()
	if !f.store.AllPresent() || f.completed.Load() != 2 {
		t.Errorf("all present: %v, complete %d times", f.store.AllPresent(), f.completed.Load())
	}
}

// TestCutDevice: what a file loses is fetched again, and the rest is not.
func TestCutDevice(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	f.wait()
	off, n := f.span(7)
	must(t, os.Truncate(f.store.DevicePath(), off+n/2))
	calls := f.blob.calls.Load()
	f.mustRead(f.span(6))
	if f.blob.calls.Load() != calls {
		t.Error("what was not lost was fetched again")
	}
	last, m := f.span(len(f.s.spans) - 1)
	f.mustRead(last, m)
	f.mustRead(0, f.Size())
	f.wait()
	if !f.store.AllPresent() || f.completed.Load() != 2 {
		t.Errorf("all present: %v, complete %d times", f.store.AllPresent(), f.completed.Load())
	}
	got := make([]byte, len(f.s.device))
	if err := f.store.Read(got, 0); err != nil || !bytes.Equal(got, f.s.device) {
		t.Errorf("the store has something else: %v", err)
	}
}

// TestCutWhileFilled: a file that is cut while spans come gets them all, and those that it has lost
// again.
func TestCutWhileFilled(t *testing.T) {
	f := setup(t, newSample(t), nil)
	half := f.s.spans[len(f.s.spans)/2].Device
	f.mustRead(0, half)
	f.wait()
	must(t, os.Truncate(f.store.DevicePath(), half/2))
	must(t, f.Fetch(t.Context(), half, f.Size()-half, line.Background))
	must(t, f.Fetch(t.Context(), 0, f.Size(), line.Background))
	f.wait()
	if !f.store.AllPresent() {
		t.Error("the layer is not whole")
	}
	got := make([]byte, len(f.s.device))
	if err := f.store.Read(got, 0); err != nil || !bytes.Equal(got, f.s.device) {
		t.Errorf("the store has something else: %v", err)
	}
}

// TestRemovedDevice: a device that was removed before it was opened is made anew.
func TestRemovedDevice(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(f.span(3))
	f.wait()
	must(t, os.Remove(f.store.DevicePath()))
	must(t, f.Empty())
	f.mustRead(f.span(3))
	f.wait()
	if !f.store.Present(3) || f.store.Present(4) {
		t.Error("the layer is not what was read")
	}
}

// TestReadsWhileSpansGo: no reader sees a hole.
func TestReadsWhileSpansGo(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	f.wait()
	var stop atomic.Bool
	var readers sync.WaitGroup
	for k := range 4 {
		readers.Go(func() {
			for i := int64(k); !stop.Load(); i += 7919 {
				n := 1 + i*31%200_000
				off := i * 4099 % (f.Size() - n)
				f.mustRead(off, n)
			}
		})
	}
	end := time.Now().Add(2 * time.Second)
	for n := 0; time.Now().Before(end); n++ {
		if n%10 == 9 {
			must(t, f.Empty())
		} else if _, err := f.Evict([]int{n % len(f.s.spans), n * 3 % len(f.s.spans), n * 5 % len(f.s.spans)}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Millisecond)
	}
	stop.Store(true)
	readers.Wait()
	f.wait()
}

// TestFresh: bytes that the store has come from the source.
func TestFresh(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(f.span(3))
	f.wait()
	calls := f.blob.calls.Load()
	off, n := f.span(3)
	p := make([]byte, n)
	must(t, f.Fresh(t.Context(), p, off))
	if !bytes.Equal(p, f.s.device[off:off+n]) || f.blob.calls.Load() == calls {
		t.Error("they did not")
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
		o.Budget = line.New(needBlob, needDevice)
	})
	var readers sync.WaitGroup
	for k := range 8 {
		readers.Go(func() {
			if k%2 == 0 {
				must(t, f.Fetch(t.Context(), 0, f.Size(), line.Background))
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
	f.nothingTaken()
}

func TestTooLarge(t *testing.T) {
	f := setup(t, newSample(t), func(f *fixture, o *Options) { o.Budget = line.New(1<<20, 4096) })
	if err := f.read(t.Context(), 0, 10); !errors.Is(err, line.ErrTooLarge) {
		t.Errorf("decoded: %v", err)
	}
	f.o.Budget = line.New(100, 1<<20)
	if err := f.read(t.Context(), 0, 10); !errors.Is(err, line.ErrTooLarge) {
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
