package layer

import (
	"bytes"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/targz"
)

// flip changes a bit of the store's device.
func (f *fixture) flip(off int64) {
	f.t.Helper()
	file, err := os.OpenFile(f.store.DevicePath(), os.O_RDWR, 0)
	must(f.t, err)
	defer file.Close()
	b := make([]byte, 1)
	_, err = file.ReadAt(b, off)
	must(f.t, err)
	b[0] ^= 1
	_, err = file.WriteAt(b, off)
	must(f.t, err)
}

// TestTampered: a span that somebody has changed on disk is noticed, fetched anew and stored, and
// the others are not.
func TestTampered(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	f.wait()
	calls := f.blob.calls.Load()
	f.mustRead(0, f.Size())
	off, n := f.span(7)
	f.flip(off + n/2)
	f.mustRead(off+n/2, 10)
	f.wait()
	f.mustRead(0, f.Size())
	if got := f.blob.calls.Load() - calls; got != 1 {
		t.Errorf("%d requests for one wrong span", got)
	}
	if n := f.counters.unreadable.Load(); n != 1 {
		t.Errorf("%d spans were given up", n)
	}
}

// TestTamperedAtRest is TestTampered while nobody has the layer open.
func TestTamperedAtRest(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	f.wait()
	off, n := f.span(7)
	f.flip(off + n/2)
	before := f.counters.unreadable.Load()
	for range 2 {
		f.mustRead(f.span(3))
		f.mustRead(f.span(7))
		f.wait()
	}
	if got := f.counters.unreadable.Load() - before; got != 1 {
		t.Errorf("%d spans were given up", got)
	}
}

// TestTamperedWhileRead: bits flip again and again, and readers that come at the same time never
// see one. Not while this process writes: a change in that moment passes for its own.
func TestTamperedWhileRead(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	r := rand.New(rand.NewPCG(9, 9))
	for range 150 {
		f.wait()
		at := r.Int64N(f.Size())
		f.flip(at)
		var readers sync.WaitGroup
		for k := range int64(4) {
			n := 1 + r.Int64N(100_000)
			off := max(min(at-n/2+k*10_000, f.Size()-n), 0)
			readers.Go(func() { f.mustRead(off, n) })
		}
		readers.Wait()
	}
	f.wait()
	f.mustRead(0, f.Size())
}

// TestForgetfulDisk: after an error of the disk nothing is sure, and what is right when it is
// compared may be wrong when it is read once more.
func TestForgetfulDisk(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	f.wait()
	var reads atomic.Int64
	f.store.fails(t)
	f.store.after = func(p []byte, _ int64) {
		if reads.Add(1)%2 == 0 {
			clear(p)
		}
	}
	for i := range f.s.spans {
		off, n := f.span(i)
		f.mustRead(off+n/3, n/2)
		f.mustRead(off, min(n+7, f.Size()-off))
	}
	if reads.Load() == 0 {
		t.Error("nothing was read of the disk")
	}
}

// TestLostOnTheWay: a sector of what was written reads as zeros, as a disk that fails has it before
// anybody hears of an error. No reader sees it, what is not durable comes once more, and zeros that
// belong there cost nothing.
func TestLostOnTheWay(t *testing.T) {
	f := setup(t, newSample(t), nil)
	f.mustRead(0, f.Size())
	f.wait()
	calls := f.blob.calls.Load()
	var reads atomic.Int64
	off, n := f.span(7)
	lost := (off + n/2) &^ 511
	var written atomic.Bool
	f.store.write = func(i int) error {
		if i == 7 {
			written.Store(true)
		}
		return nil
	}
	f.store.after = func(p []byte, off int64) {
		reads.Add(1)
		if from, to := max(lost-off, 0), min(lost+512-off, int64(len(p))); from < to && !written.Load() {
			clear(p[from:to])
		}
	}
	for at := int64(0); at < off; at += 4096 {
		f.mustRead(at, min(4096, off-at))
	}
	if want := (off + 4095) / 4096; reads.Load() != want || f.blob.calls.Load() != calls {
		t.Errorf("%d reads and %d requests for what is right, want %d and none", reads.Load(), f.blob.calls.Load()-calls, want)
	}
	f.mustRead(lost+100, 7)
	f.wait()
	if !written.Load() || f.store.Present(0) {
		t.Errorf("the lost span was written again: %v, another that may be lost is believed: %v", written.Load(), f.store.Present(0))
	}
	f.mustRead(0, f.Size())
}

// TestComparedInPieces: however large spans are, and however many readers come, what is compared of
// them takes a bounded part of the memory; and what is wrong in any piece is found.
func TestComparedInPieces(t *testing.T) {
	blob := zipped(t, tarball(t, rand.New(rand.NewPCG(9, 9)), 12<<20))
	var windows, device, ix bytes.Buffer
	d, err := targz.Scan(t.Context(), bytes.NewReader(blob), targz.Options{
		SpanSize: 4 << 20, Device: &device, Windows: &windows,
	})
	must(t, err)
	_, err = index.Write(&ix, d)
	must(t, err)
	f := setup(t, &sample{
		blob: blob, windows: windows.Bytes(), device: device.Bytes(), index: ix.Bytes(),
		header: d.Header, spans: d.Spans,
	}, nil)
	if _, n := f.span(0); n < 3<<20 {
		t.Fatalf("a span of %d bytes", n)
	}
	f.mustRead(0, f.Size())
	f.wait()
	var now, most, largest atomic.Int64
	raise := func(a *atomic.Int64, n int64) {
		for old := a.Load(); n > old && !a.CompareAndSwap(old, n); old = a.Load() {
		}
	}
	f.store.fails(t)
	f.store.read = func(int64) error { raise(&most, now.Add(1)); return nil }
	f.store.after = func(p []byte, _ int64) { now.Add(-1); raise(&largest, int64(len(p))) }
	var readers sync.WaitGroup
	for i := range 200 {
		readers.Go(func() {
			if err := f.read(t.Context(), int64(i)*50_000, 70_000); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if m, l := most.Load(), largest.Load(); m > line.ComparesMost || l > 1<<20 {
		t.Errorf("%d at a time, of %d bytes", m, l)
	}
	f.store.read, f.store.after = nil, nil
	calls := f.blob.calls.Load()
	off, n := f.span(1)
	f.flip(off + n - 5)
	f.mustRead(off, 100)
	if f.blob.calls.Load() == calls {
		t.Error("a wrong span was believed")
	}
}
