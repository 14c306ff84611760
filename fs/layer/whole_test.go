package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/targz"
)

var wholeSample = sync.OnceValue(func() []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return z.EncodeAll(commonSample.device, nil)
})

// newWhole returns a zstd layer of about 3 MB, with six spans or more.
func newWhole(t testing.TB) *sample {
	t.Helper()
	newSample(t)
	s := scan(t, wholeSample())
	if !s.spans.FromStart() || len(s.spans) < 6 {
		t.Fatalf("%d spans", len(s.spans))
	}
	return s
}

func unpacks(o *Options) {
	o.Unpack = func(_ context.Context, blob io.Reader) (io.ReadCloser, error) {
		return targz.Unpack(blob, func(int64) error { return nil })
	}
}

// setupWhole opens a lazy layer that can only be fetched whole, which nothing has been fetched of.
func setupWhole(t testing.TB, change func(*fixture, *Options)) *fixture {
	t.Helper()
	return setup(t, newWhole(t), func(f *fixture, o *Options) {
		unpacks(o)
		if change != nil {
			change(f, o)
		}
	})
}

func (f *fixture) calls(t testing.TB, want int64) {
	t.Helper()
	if n := f.blob.calls.Load(); n != want {
		t.Errorf("%d requests, want %d", n, want)
	}
}

// TestWholeReads: whatever is read, and in whatever order, the blob comes once.
func TestWholeReads(t *testing.T) {
	f := setupWhole(t, nil)
	var readers sync.WaitGroup
	for i := range 20 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 10 {
				off := r.Int64N(f.Size() - 1000)
				f.mustRead(off, r.Int64N(min(f.Size()-off, 700_000)))
			}
		})
	}
	readers.Wait()
	f.mustRead(0, f.Size())
	f.wait()
	f.calls(t, 1)
	if f.completed.Load() != 1 || !f.store.AllPresent() {
		t.Errorf("complete %d times", f.completed.Load())
	}
}

// TestWholeFill: the background's requests join the stream too.
func TestWholeFill(t *testing.T) {
	f := setupWhole(t, nil)
	for off := int64(0); ; {
		run, err := f.Next(off, f.Size(), line.Background)
		must(t, err)
		if run.Size == 0 {
			break
		}
		if run.Off < off || run.Bytes <= 0 || run.Bytes > int64(len(f.s.blob)) {
			t.Fatalf("run %+v at %d", run, off)
		}
		must(t, f.Fetch(t.Context(), run.Off, run.Size, line.Background))
		off = run.Off + run.Size
	}
	f.calls(t, 1)
}

// TestWholeEvicted: what goes comes again, by one request, and only what is missing is written.
func TestWholeEvicted(t *testing.T) {
	f := setupWhole(t, nil)
	f.mustRead(0, f.Size())
	_, err := f.Evict([]int{1, 3})
	must(t, err)
	f.mustRead(0, f.Size())
	f.wait()
	f.calls(t, 2)
	must(t, f.Empty())
	off, n := f.span(4)
	f.mustRead(off, n)
	f.wait()
	f.calls(t, 3)
	if !f.store.AllPresent() {
		t.Error("not all has come")
	}
}

// TestWholeGoesOn: a reader that leaves does not end the stream.
func TestWholeGoesOn(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	f := setupWhole(t, func(f *fixture, _ *Options) {
		f.blob.fault = func(context.Context, int, []byte, int64) error {
			close(begun)
			<-goOn
			return nil
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	off, n := f.span(2)
	if err := f.read(ctx, off, n); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	close(goOn)
	f.wait()
	f.calls(t, 1)
	if !f.store.AllPresent() {
		t.Error("not all has come")
	}
}

// TestWholeFaults: wrong bytes are asked for again; what stays wrong, or fails, is an error of the
// reads, and no more.
func TestWholeFaults(t *testing.T) {
	broken := errors.New("broken")
	flip := func(p []byte) error { p[len(p)/2] ^= 4; return nil }
	other := func(p []byte) error { copy(p, "something else"); return nil }
	for name, tt := range map[string]struct {
		fault func(p []byte) error
		calls int64
		is    error
	}{
		"wrong once":   {flip, 2, nil},
		"always wrong": {flip, maxTries, index.ErrCorrupt},
		"no zstd":      {other, maxTries, index.ErrCorrupt},
		"fails":        {func([]byte) error { return broken }, 1, broken},
	} {
		t.Run(name, func(t *testing.T) {
			f := setupWhole(t, func(f *fixture, _ *Options) {
				f.blob.fault = func(_ context.Context, call int, p []byte, _ int64) error {
					if name == "wrong once" && call > 1 {
						return nil
					}
					return tt.fault(p)
				}
			})
			off, n := f.span(len(f.s.spans) - 1)
			err := f.read(t.Context(), off, n)
			if !errors.Is(err, tt.is) || (err == nil) != (tt.is == nil) {
				t.Fatalf("error %v", err)
			}
			f.wait()
			f.calls(t, tt.calls)
			f.blob.fault = nil
			f.mustRead(0, f.Size())
		})
	}
}

// TestWholeStalls: a reader waits for as long as it may, says for what, and the stream ends with
// it.
func TestWholeStalls(t *testing.T) {
	why := errors.New("registry is gone")
	f := setupWhole(t, func(f *fixture, o *Options) {
		o.Deadline = 300 * time.Millisecond
		f.blob.fault = func(ctx context.Context, _ int, _ []byte, _ int64) error {
			<-ctx.Done()
			return errors.Join(why, context.Cause(ctx))
		}
	})
	if err := f.read(t.Context(), 0, 10); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	f.wait()
	f.blob.fault = nil
	f.mustRead(0, f.Size())
}

// TestWholeClose: Close ends a stream.
func TestWholeClose(t *testing.T) {
	begun := make(chan struct{})
	f := setupWhole(t, func(f *fixture, _ *Options) {
		f.blob.fault = func(ctx context.Context, _ int, _ []byte, _ int64) error {
			close(begun)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	go func() { <-begun; f.Close() }()
	if err := f.read(t.Context(), 0, 10); err == nil {
		t.Error("no error")
	}
}

// TestStream: Stream brings the spans that it is asked for, whatever the store has.
func TestStream(t *testing.T) {
	f := setupWhole(t, nil)
	f.mustRead(0, f.Size())
	var got []int
	must(t, f.Stream(t.Context(), []int{2, 5}, func(i int, data []byte) error {
		got = append(got, i)
		off, n := f.span(i)
		if !bytes.Equal(data, f.s.device[off:off+n]) {
			t.Errorf("span %d is wrong", i)
		}
		return nil
	}))
	if len(got) != 2 || got[0] != 2 || got[1] != 5 {
		t.Errorf("spans %v", got)
	}
	f.calls(t, 2)
}
