package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	f.o.Budget = NewBudget(100, 1<<20)
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
