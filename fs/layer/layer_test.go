package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mica-snapshotter/mica/fs/internal/files"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/targz"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ Store = (*store.Layer)(nil)

// sample is a real layer: a blob, and what a scan of it made.
type sample struct {
	blob, windows, device, index []byte
	header                       index.Header
	spans                        index.Spans
}

// words is text that compresses about as programs do.
func words(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+16)
	for len(b) < n {
		if r.IntN(3) == 0 {
			b = fmt.Appendf(b, "%x ", r.Uint64())
		} else {
			b = append(b, "the layer of the image "[r.IntN(20):]...)
		}
	}
	return b[:n]
}

func tarball(t testing.TB, r *rand.Rand, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; b.Len() < size; i++ {
		data := words(r, r.IntN(200_000))
		must(t, w.WriteHeader(&tar.Header{Name: fmt.Sprint("f", i), Mode: 0o644, Size: int64(len(data))}))
		_, err := w.Write(data)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func zipped(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		z := gzip.NewWriter(&b)
		_, err := z.Write(p)
		must(t, err)
		must(t, z.Close())
	}
	return b.Bytes()
}

func scan(t testing.TB, blob []byte) *sample {
	t.Helper()
	var windows, device, ix bytes.Buffer
	d, err := targz.Scan(t.Context(), bytes.NewReader(blob), targz.Options{
		Whole: true, SpanSize: 64 << 10, Device: &device, Windows: &windows,
	})
	must(t, err)
	_, err = index.Write(&ix, d)
	must(t, err)
	return &sample{blob: blob, windows: windows.Bytes(), device: device.Bytes(), index: ix.Bytes(), header: d.Header, spans: d.Spans}
}

var (
	sampleOnce   sync.Once
	commonSample *sample
)

// newSample returns a gzip layer of about 3 MB with some 40 spans.
func newSample(t testing.TB) *sample {
	t.Helper()
	sampleOnce.Do(func() {
		commonSample = scan(t, zipped(t, tarball(t, rand.New(rand.NewPCG(1, 2)), 3<<20)))
	})
	if commonSample == nil {
		t.Fatal("the layer could not be made")
	}
	return commonSample
}

// memory is a Source in memory. fault, if set, decides about each call: whether it fails, waits, or
// changes the bytes.
type memory struct {
	b     []byte
	fault func(ctx context.Context, call int, p []byte, off int64) error
	calls atomic.Int64
	bytes atomic.Int64
}

func (m *memory) Size() int64 { return int64(len(m.b)) }

func (m *memory) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	call := int(m.calls.Add(1))
	m.bytes.Add(n)
	if off < 0 || off+n > int64(len(m.b)) {
		return nil, io.ErrUnexpectedEOF
	}
	p := bytes.Clone(m.b[off : off+n])
	err := ctx.Err()
	if m.fault != nil {
		err = m.fault(ctx, call, p, off)
	}
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

func (m *memory) Suspect(_, _ int64) {}

func (m *memory) Place() string { return "" }

// shaky is a store on a disk that fails or waits when the functions say so.
type shaky struct {
	*store.Layer
	find  func(off int64) int // the span at a place of the device
	write func(i int) error
	read  func(off int64) error
	after func(p []byte, off int64) // may change what was read
	sync  func() error
}

// disk is the disk of a shaky store.
type disk struct {
	files.OS
	s *shaky
}

func (d disk) Open(name string, flag int) (files.File, error) {
	f, err := d.OS.Open(name, flag)
	if err != nil || filepath.Base(name) != "device" {
		return f, err
	}
	return device{f, d.s}, nil
}

// device is the device of a shaky store.
type device struct {
	files.File
	s *shaky
}

func (d device) WriteAt(p []byte, off int64) (int, error) {
	if d.s.write != nil {
		if err := d.s.write(d.s.find(off)); err != nil {
			return 0, err
		}
	}
	return d.File.WriteAt(p, off)
}

func (d device) ReadAt(p []byte, off int64) (int, error) {
	if d.s.read != nil {
		if err := d.s.read(off); err != nil {
			return 0, err
		}
	}
	n, err := d.File.ReadAt(p, off)
	if d.s.after != nil {
		d.s.after(p[:n], off)
	}
	return n, err
}

func (d device) Sync() error {
	if d.s.sync != nil {
		if err := d.s.sync(); err != nil {
			return err
		}
	}
	return d.File.Sync()
}

// fails has the disk fail once: from then on nothing is believed that was not compared just before.
func (s *shaky) fails(t *testing.T) {
	t.Helper()
	s.read = func(int64) error { return unix.EIO }
	if err := s.Compare(0, nil); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	s.read = nil
}

// fixture is a layer over a real store and sources in memory.
type fixture struct {
	*Layer
	t             testing.TB
	s             *sample
	store         *shaky
	blob, windows *memory
	completed     atomic.Int64
}

// setup opens a lazy layer of s; change, if not nil, adapts it before New.
func setup(t testing.TB, s *sample, change func(*fixture, *Options)) *fixture {
	t.Helper()
	old := slog.SetLogLoggerLevel(slog.LevelError + 1)
	t.Cleanup(func() { slog.SetLogLoggerLevel(old) })
	f := &fixture{
		t: t, s: s, store: &shaky{find: s.spans.Find},
		blob: &memory{b: s.blob}, windows: &memory{b: s.windows},
	}
	st, err := store.OpenOn(t.TempDir(), disk{s: f.store})
	must(t, err)
	in, err := st.Create(s.header.Layer)
	must(t, err)
	_, err = in.Index().Write(s.index)
	must(t, err)
	kept, err := in.Commit(store.Record{
		Layer: s.header.Layer, DiffID: s.header.DiffID, LayerSize: s.header.LayerSize,
		DeviceSize: s.header.DeviceSize, Spans: len(s.spans),
	})
	must(t, err)
	ix, err := index.Open(bytes.NewReader(s.index), int64(len(s.index)))
	must(t, err)
	f.store.Layer = kept
	o := Options{Blob: f.blob, Windows: f.windows, Complete: func() { f.completed.Add(1) }}
	if change != nil {
		change(f, &o)
	}
	f.Layer = New(ix, f.store, o)
	t.Cleanup(func() {
		f.Close()
		must(t, kept.Close())
		must(t, st.Close())
	})
	return f
}

// read reads a range and compares it; it returns the read's error.
func (f *fixture) read(ctx context.Context, off, n int64) error {
	f.t.Helper()
	p := bytes.Repeat([]byte{0xee}, int(n))
	if err := f.ReadAt(ctx, p, off); err != nil {
		return err
	}
	want := make([]byte, n)
	if off < int64(len(f.s.device)) {
		copy(want, f.s.device[off:])
	}
	if !bytes.Equal(p, want) {
		f.t.Errorf("[%d, +%d) is wrong", off, n)
	}
	return nil
}

func (f *fixture) mustRead(off, n int64) {
	f.t.Helper()
	must(f.t, f.read(f.t.Context(), off, n))
}

// span returns the range of span i.
func (f *fixture) span(i int) (off, n int64) { return f.s.spans[i].Device, f.s.spans[i].Size }

func TestReads(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	text := tarball(t, r, 1<<20)
	for name, blob := range map[string][]byte{
		"gzip":            zipped(t, text),
		"several members": zipped(t, text[:100_000], nil, text[100_000:700_001], text[700_001:]),
		"tar":             text,
		"odd length":      zipped(t, append(bytes.Clone(text), 1, 2, 3)),
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, scan(t, blob), nil)
			size := f.Size()
			if size%512 != 0 || size < int64(len(f.s.device)) || size >= int64(len(f.s.device))+512 {
				t.Fatalf("size %d of a device of %d", size, len(f.s.device))
			}
			for _, c := range [][2]int64{
				{0, 1}, {0, 0}, {size, 0}, {size - 1, 1}, {size - 512, 512}, {f.s.spans[1].Device - 1, 2}, {f.s.spans[2].Device, 1},
			} {
				f.mustRead(c[0], c[1])
			}
			for range 20 {
				off := r.Int64N(size)
				f.mustRead(off, r.Int64N(size-off+1))
			}
			f.mustRead(0, size)
			f.wait() // readers do not wait for the disk
			if f.completed.Load() != 1 {
				t.Errorf("completion was told %d times", f.completed.Load())
			}
			must(t, f.store.VerifyWhole(t.Context()))
			before := f.Stats().Requests
			f.mustRead(0, size)
			st := f.Stats()
			if st.Requests != before || st.Present != int64(len(f.s.device)) || !f.store.AllPresent() || st.LastError != nil {
				t.Errorf("stats of a complete layer: %+v", st)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	f := setup(t, newSample(t), nil)
	for _, c := range []struct{ off, n int64 }{
		{-1, 1}, {f.Size(), 1}, {f.Size() - 1, 2}, {1 << 62, 1}, {1<<63 - 1, 5},
	} {
		if err := f.ReadAt(t.Context(), make([]byte, c.n), c.off); err == nil {
			t.Errorf("read of [%d, +%d) succeeds", c.off, c.n)
		}
		if err := f.Fill(t.Context(), c.off, c.n); err == nil {
			t.Errorf("fill of [%d, +%d) succeeds", c.off, c.n)
		}
	}
	if err := f.Fill(t.Context(), 0, 1<<63-1); err == nil {
		t.Error("fill of everything and more succeeds")
	}
	if f.blob.calls.Load() > 0 {
		t.Error("something was fetched")
	}
}

// TestFaultySources: many readers of random ranges; the sources are slow, and
// change some bytes of what they return.
func TestFaultySources(t *testing.T) {
	fault := func(ctx context.Context, call int, p []byte, off int64) error {
		switch call % 5 {
		case 1:
			p[len(p)/2] ^= 4
		case 3:
			clear(p[:min(len(p), 100)])
		}
		return ctx.Err()
	}
	f := setup(t, newSample(t), func(f *fixture, o *Options) {
		f.blob.fault, f.windows.fault = fault, fault
		o.Budget = line.New(1<<20, 1<<20)
	})
	var readers sync.WaitGroup
	for k := range 16 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(k), 5))
			for range 40 {
				off := r.Int64N(f.Size())
				n := min(r.Int64N(300_000), f.Size()-off)
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(3) == 0 {
					// A reader that is interrupted now and then.
					go func() { cancel() }()
				}
				// Four tries can all be wrong; then the reader tries again.
				if err := f.read(ctx, off, n); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, index.ErrCorrupt) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	readers.Wait()
	f.blob.fault, f.windows.fault = nil, nil
	f.mustRead(0, f.Size())
	must(t, f.store.VerifyWhole(t.Context()))
	if f.Stats().Corrupt == 0 {
		t.Error("no wrong bytes were noticed")
	}
	if f.completed.Load() != 1 {
		t.Errorf("completion was told %d times", f.completed.Load())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.flights) > 0 {
		t.Errorf("%d flights are left", len(f.flights))
	}
}

// TestFill: after Fill a read waits for nothing.
func TestFill(t *testing.T) {
	f := setup(t, newSample(t), nil)
	off, n := f.span(3)
	must(t, f.Fill(t.Context(), off+1, n))
	calls := f.blob.calls.Load()
	f.mustRead(off, n+1)
	if f.blob.calls.Load() != calls {
		t.Error("the read fetched again")
	}
	must(t, f.Fetch(t.Context(), 0, f.Size(), line.Background))
	calls = f.blob.calls.Load()
	f.mustRead(0, f.Size())
	if f.blob.calls.Load() != calls {
		t.Error("the read fetched again after a background fetch")
	}
}

// wait waits until nothing is under way: a reader is served before its span is
// in the store.
func (f *fixture) wait() { f.running.Wait() }

// free says whether nothing is taken of a meter.
func free(m *line.Meter) bool {
	all := m.Size() - m.Size()/4 // what is not kept for readers
	if !m.Try(all) {
		return false
	}
	m.Release(all)
	return true
}

// nothingTaken fails the test if something was not given back to the budget.
func (f *fixture) nothingTaken() {
	f.t.Helper()
	b := f.o.Budget
	for name, m := range map[string]*line.Meter{"fetch": b.Fetch, "decode": b.Decode} {
		if !free(m) {
			f.t.Errorf("something is still taken of %s", name)
		}
	}
}

// TestWarmReadsCostNothing: no allocation, no lock, no request.
func TestWarmReadsCostNothing(t *testing.T) {
	f := setup(t, newSample(t), nil)
	off, n := f.span(5)
	f.mustRead(off, n)
	f.wait()
	p := make([]byte, 4096)
	f.mu.Lock() // a read that took it would hang
	defer f.mu.Unlock()
	read := func() {
		if err := f.ReadAt(t.Context(), p, off+100); err != nil {
			t.Error(err)
		}
		if !f.present(off, off+n) {
			t.Error("not present")
		}
	}
	// the whole process is counted: what else allocates just then, such as the
	// end of another test's goroutines, is not in every try
	allocs := testing.AllocsPerRun(100, read)
	for range 9 {
		allocs = min(allocs, testing.AllocsPerRun(100, read))
	}
	if allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}
