package layer

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/line"
)

// streaming is a source whose bodies stop where stop says, until it is told to go on.
type streaming struct {
	memory
	stop  func(off int64) <-chan struct{}
	delay func(call int64) time.Duration // until a body begins
}

func (s *streaming) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	call := s.calls.Add(1)
	if s.delay != nil {
		if err := sleep(ctx, s.delay(call)); err != nil {
			return nil, err
		}
	}
	return &body{s: s, ctx: ctx, off: off, end: off + n}, nil
}

type body struct {
	s        *streaming
	ctx      context.Context
	off, end int64
}

// Read brings up to 4 KiB.
func (b *body) Read(p []byte) (int, error) {
	if b.off == b.end {
		return 0, io.EOF
	}
	if b.s.stop != nil {
		select {
		case <-b.s.stop(b.off):
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	n := copy(p, b.s.b[b.off:min(b.end, b.off+4096)])
	b.off += int64(n)
	return n, nil
}

func (b *body) Close() error { return nil }

// streamed makes the blob's source one that streams.
func streamed(f *fixture, o *Options) *streaming {
	src := &streaming{memory: memory{b: f.s.blob}}
	o.Blob = src
	return src
}

// TestEarlySpansDoNotWait: a span is served, and stored, while the body still brings those behind
// it.
func TestEarlySpansDoNotWait(t *testing.T) {
	open, shut := make(chan struct{}), make(chan struct{})
	close(open)
	f := setup(t, newSample(t), func(f *fixture, o *Options) {
		streamed(f, o).stop = func(off int64) <-chan struct{} {
			if off > f.s.spans[20].Blob+8192 {
				return shut
			}
			return open
		}
	})
	off, n := f.span(10)
	all := make(chan error)
	go func() { all <- f.Fetch(t.Context(), off, 15*n, line.Replay) }()
	for !f.store.Present(19) {
		time.Sleep(time.Millisecond)
	}
	f.mustRead(off, n)
	f.mustRead(f.span(19))
	if f.store.Present(20) || f.store.Present(21) {
		t.Error("a span is there before its bytes")
	}
	close(shut)
	must(t, <-all)
	f.mustRead(off, 15*n)
}

// lineIsFull has fills wait until the function that it returns is called.
func (f *fixture) lineIsFull() (end func()) {
	g, err := f.o.Budget.Admit(f.t.Context(), f.host(), 2<<20, line.NewUrgency(line.Background))
	must(f.t, err)
	return g.Close
}

// TestTakeOver: what waits to be sent for nobody goes to the reader that comes for it, and no byte
// is fetched twice.
func TestTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, newSample(t), nil)
		full := f.lineIsFull()
		var fills sync.WaitGroup
		fills.Go(func() { must(t, f.Fetch(t.Context(), 0, f.Size(), line.Background)) })
		synctest.Wait()
		if n := f.blob.calls.Load(); n > 0 {
			t.Errorf("%d requests while the line is full", n)
		}
		f.mustRead(f.span(7))
		f.mustRead(f.span(30))
		must(t, f.Fetch(t.Context(), f.s.spans[12].Device, 1, line.Replay))
		if n := f.blob.calls.Load(); n != 3 {
			t.Errorf("%d requests for 3 spans", n)
		}
		full()
		fills.Wait()
		f.wait()
		if !f.store.AllPresent() || f.completed.Load() != 1 {
			t.Error("layer is not whole")
		}
		// Neighbours can share a byte.
		if n := f.blob.bytes.Load(); n > int64(len(f.s.blob)+len(f.s.spans)) {
			t.Errorf("%d bytes were fetched of %d", n, len(f.s.blob))
		}
	})
}

// TestTakenWhole: a request all of whose spans went to readers is never sent, and who waits for it
// has them.
func TestTakenWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setup(t, newSample(t), nil)
		defer f.lineIsFull()()
		off, n := f.span(5)
		done := make(chan error, 1)
		go func() { done <- f.Fetch(t.Context(), off, n, line.Background) }()
		synctest.Wait()
		f.mustRead(off, n)
		must(t, <-done)
		f.wait()
		if n := f.blob.calls.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// TestBackgroundIsStored: who fetches for nobody learns that the disk is full.
func TestBackgroundIsStored(t *testing.T) {
	f := setup(t, newSample(t), func(f *fixture, _ *Options) {
		f.store.write = func(int) error { return unix.ENOSPC }
	})
	off, n := f.span(5)
	if err := f.Fetch(t.Context(), off, n, line.Background); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error is %v", err)
	}
	f.mustRead(off, n)
}

// TestWindowsSection: from the first fetch in the background on that needs one, the windows are
// here.
func TestWindowsSection(t *testing.T) {
	f := setup(t, newSample(t), nil)
	must(t, f.Fetch(t.Context(), 0, 1, line.Replay)) // the first span needs none
	if n := f.windows.calls.Load(); n != 0 {
		t.Errorf("%d requests for windows that nobody needs", n)
	}
	off, n := f.span(1)
	must(t, f.Fetch(t.Context(), off, n, line.Replay))
	for i := 3; i < 30; i += 3 {
		f.mustRead(f.span(i))
	}
	if n := f.windows.calls.Load(); n != 1 {
		t.Errorf("%d requests for windows", n)
	}
	kept := f.o.Budget.Windows
	if kept.Try(kept.Size()) {
		t.Error("the windows take nothing")
	}
	must(t, f.Fetch(t.Context(), 0, f.Size(), line.Background))
	f.wait()
	if !kept.Try(kept.Size()) {
		t.Error("what the windows took was not given back")
	}
	must(t, f.store.VerifyWhole(t.Context()))
}

// TestWindowsSectionFails: what is wrong with it costs those that need it no more than another
// request.
func TestWindowsSectionFails(t *testing.T) {
	for name, fault := range map[string]func(ctx context.Context, call int, p []byte, off int64) error{
		"wrong": func(_ context.Context, call int, p []byte, _ int64) error {
			p[len(p)/2] ^= byte(2 - min(call, 2))
			return nil
		},
		"missing": func(_ context.Context, call int, _ []byte, _ int64) error {
			return [...]error{unix.EIO, nil}[min(call, 2)-1]
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, newSample(t), func(f *fixture, _ *Options) { f.windows.fault = fault })
			for range 2 {
				// The first may have waited for the section.
				if err := f.Fetch(t.Context(), 0, f.Size(), line.Replay); err != nil && !errors.Is(err, unix.EIO) {
					t.Error(err)
				}
			}
			must(t, f.store.VerifyWhole(t.Context()))
		})
	}
}

// TestAhead: who reads on waits for little, who reads here and there costs nothing more.
func TestAhead(t *testing.T) {
	s := scan(t, zipped(t, tarball(t, rand.New(rand.NewPCG(1, 9)), 12<<20)))
	count := func(t *testing.T, read func(f *fixture)) (waits, fetched int64) {
		synctest.Test(t, func(t *testing.T) {
			var waited atomic.Int64
			f := setup(t, s, func(f *fixture, o *Options) {
				f.blob.fault = delay(10 * time.Millisecond)
				o.Waited = func(_, _ int64) { waited.Add(1) }
			})
			read(f)
			f.wait()
			waits, fetched = waited.Load(), f.blob.bytes.Load()
		})
		return waits, fetched
	}
	const step = 64 << 10
	waits, fetched := count(t, func(f *fixture) {
		for off := int64(0); off < f.Size(); off += step {
			f.mustRead(off, min(step, f.Size()-off))
			time.Sleep(5 * time.Millisecond)
		}
	})
	if waits > 20 {
		t.Errorf("%d of %d reads waited", waits, len(s.device)/step)
	}
	if most := int64(len(s.blob) + len(s.spans)); fetched > most {
		t.Errorf("%d bytes were fetched of %d", fetched, most)
	}
	_, fetched = count(t, func(f *fixture) {
		for k := range int64(10) {
			f.mustRead(k*7%10*(1<<20), 4096)
		}
	})
	if most := int64(11 * len(s.blob) / len(s.spans) * 2); fetched > most {
		t.Errorf("%d bytes were fetched for 10 reads", fetched)
	}
}

// TestAheadEnds: what no reader comes for is given up when the network does not bring it.
func TestAheadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		f := setup(t, newSample(t), func(f *fixture, _ *Options) {
			f.blob.fault = func(ctx context.Context, call int, p []byte, off int64) error {
				if down.Load() {
					return hang(ctx, call, p, off)
				}
				return nil
			}
		})
		f.mustRead(0, 400<<10)
		f.wait()
		down.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.read(ctx, 400<<10, 200<<10) }()
		time.Sleep(time.Second)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("read: %v", err)
		}
		time.Sleep(2 * aheadPatience)
		f.mu.Lock()
		if len(f.flights) > 0 {
			t.Errorf("%d flights are left", len(f.flights))
		}
		f.mu.Unlock()
		down.Store(false)
		f.mustRead(0, f.Size())
	})
}

func TestNext(t *testing.T) {
	f := setup(t, newSample(t), nil)
	for i := range 35 {
		if i != 3 && i != 4 && i != 9 {
			off, n := f.span(i)
			must(t, f.Fetch(t.Context(), off, n, line.Replay))
		}
	}
	at := func(i int) int64 { return f.s.spans[i].Device }
	for name, c := range map[string]struct {
		off, end int64
		want     Missing
	}{
		"the first run":  {0, f.Size(), Missing{Off: at(3), Size: at(5) - at(3)}},
		"a part of it":   {at(3) + 1, at(3) + 2, Missing{Off: at(3), Size: at(4) - at(3)}},
		"the next":       {at(5), 1 << 62, Missing{Off: at(9), Size: at(10) - at(9)}},
		"nothing":        {at(10), 1 << 62, Missing{}},
		"outside":        {1 << 62, 1 << 62, Missing{}},
		"the wrong way":  {at(9), at(3), Missing{}},
		"before it":      {-5, 1, Missing{}},
		"at its end":     {at(5), at(9), Missing{}},
		"just beyond it": {at(5), at(9) + 1, Missing{Off: at(9), Size: at(10) - at(9)}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := f.Next(c.off, c.end, line.Background)
			if (got.Bytes > 0) != (got.Size > 0) {
				t.Errorf("%d bytes of the blob", got.Bytes)
			}
			if got.Bytes = 0; err != nil || got != c.want {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
		})
	}
	f.mustRead(0, f.Size())
	f.wait()
	if got, err := f.Next(0, f.Size(), line.Background); err != nil || got.Size > 0 {
		t.Errorf("got %v, %v of a whole layer", got, err)
	}
}

// TestUses: bytes that a replay brought, of these those that are read, and reads that it did not
// foresee.
func TestUses(t *testing.T) {
	f := setup(t, newSample(t), nil)
	if got := f.Uses(); got != (Uses{}) {
		t.Errorf("uses of nothing are %+v", got)
	}
	expect := func(want Uses) {
		t.Helper()
		f.wait()
		if got := f.Uses(); got != want {
			t.Errorf("uses are %+v, want %+v", got, want)
		}
	}
	sum := func(spans ...int) (n int64) {
		for _, i := range spans {
			n += f.s.spans[i].Size
		}
		return n
	}
	off2, n2 := f.span(2)
	off8, _ := f.span(8)
	must(t, f.Expect(off2+10, n2)) // 2 and 3
	must(t, f.Expect(off8, 1))
	must(t, f.Expect(off8, 1))
	must(t, f.Expect(f.Size()-1, 1<<40))
	last := len(f.s.spans) - 1
	expect(Uses{})
	must(t, f.Fetch(t.Context(), off2, n2, line.Replay))
	expect(Uses{Brought: sum(2)})
	f.mustRead(off2, 10)
	f.mustRead(off2, 20)
	expect(Uses{Brought: sum(2), Read: sum(2)})
	f.mustRead(off8, 1) // before the replay has brought it
	expect(Uses{Brought: sum(2, 8), Read: sum(2, 8)})
	f.mustRead(f.span(20))
	f.mustRead(f.span(20))
	expect(Uses{Brought: sum(2, 8), Read: sum(2, 8), Missed: 1})
	must(t, f.Fetch(t.Context(), 0, f.Size(), line.Background))
	expect(Uses{Brought: sum(2, 3, 8, last), Read: sum(2, 8), Missed: 1})
	// What has come has come, though it goes again.
	must(t, f.Expect(f.span(5)))
	if _, err := f.Evict([]int{3, 5, 8}); err != nil {
		t.Fatal(err)
	}
	expect(Uses{Brought: sum(2, 3, 5, 8, last), Read: sum(2, 8), Missed: 1})
	must(t, f.Empty())
	expect(Uses{Brought: sum(2, 3, 5, 8, last), Read: sum(2, 8), Missed: 1})
}
