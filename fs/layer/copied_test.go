package layer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// withCopy opens a lazy layer of which a copy has spans 2 to 9 and 20; its source is in memory.
func withCopy(t *testing.T, change func(*Copy, *memory)) (*fixture, *memory, *Copy) {
	t.Helper()
	s := newSample(t)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	must(t, err)
	defer z.Close()
	m := &memory{}
	c := &Copy{Source: m, Frames: map[int]index.Range{}}
	for _, i := range []int{20, 2, 3, 4, 5, 6, 7, 8, 9} {
		f := z.EncodeAll(s.device[s.spans[i].Device:][:s.spans[i].Size], nil)
		c.Frames[i] = index.Range{Off: int64(len(m.b)), Size: int64(len(f))}
		m.b = append(m.b, f...)
	}
	if change != nil {
		change(c, m)
	}
	return setup(t, s, func(_ *fixture, o *Options) { o.Copy = c }), m, c
}

// all reads the device, in pieces that have little to do with spans.
func (f *fixture) all() {
	f.t.Helper()
	const n = 300_000
	for off := int64(0); off < f.Size(); off += n {
		f.mustRead(off, min(n, f.Size()-off))
	}
}

// TestCopy: what a copy has comes from there, in one request where it lies together, and without
// windows.
func TestCopy(t *testing.T) {
	f, m, c := withCopy(t, nil)
	off, _ := f.span(2)
	last, n := f.span(9)
	run, err := f.Next(off, last+n, line.Replay)
	must(t, err)
	if run.Off != off || run.Size != last+n-off || run.Bytes != int64(len(m.b))-c.Frames[20].Size {
		t.Errorf("the run is %+v", run)
	}
	f.mustRead(off, last+n-off)
	off, n = f.span(20)
	f.mustRead(off+7, n-7)
	if b, c, w := f.blob.calls.Load(), m.calls.Load(), f.windows.calls.Load(); b != 0 || c != 2 || w != 0 {
		t.Errorf("requests: %d to the blob, %d to the copy, %d to the windows", b, c, w)
	}
	f.all()
	f.wait()
	if c := m.bytes.Load(); c != int64(len(m.b)) || f.completed.Load() != 1 {
		t.Errorf("%d bytes of a copy of %d; %d times complete", c, len(m.b), f.completed.Load())
	}
	// What goes later comes from the blob.
	_, err = f.Evict([]int{3})
	must(t, err)
	before := m.calls.Load()
	off, n = f.span(3)
	f.mustRead(off, n)
	if m.calls.Load() != before {
		t.Error("the copy was asked for a span that had come before")
	}
}

// TestCopyOfNoUse: a copy that is wrong, or does not come, costs a request, and no reader anything
// else.
func TestCopyOfNoUse(t *testing.T) {
	for name, change := range map[string]func(*Copy, *memory){
		"wrong bytes":   func(_ *Copy, m *memory) { m.b[len(m.b)/2] ^= 4 },
		"another span":  func(c *Copy, _ *memory) { c.Frames[4], c.Frames[5] = c.Frames[5], c.Frames[4] },
		"cut":           func(_ *Copy, m *memory) { m.b = m.b[:len(m.b)/2] },
		"no such spans": func(c *Copy, _ *memory) { c.Frames[1000], c.Frames[-1] = c.Frames[5], c.Frames[5] },
		"large frames": func(c *Copy, m *memory) {
			m.b = append(m.b, make([]byte, line.DefaultFetchBytes)...)
			c.Frames[4] = index.Range{Size: int64(len(m.b))}
		},
		"tiny frames": func(c *Copy, m *memory) {
			for i := range newSample(t).spans {
				c.Frames[i] = index.Range{Off: int64(i), Size: 1}
			}
		},
		"not to be fetched": func(_ *Copy, m *memory) {
			m.fault = func(context.Context, int, []byte, int64) error { return errors.New("gone") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, m, _ := withCopy(t, change)
			f.all()
			f.wait()
			if f.completed.Load() != 1 {
				t.Error("not complete")
			}
			if st := f.Stats(); st.Corrupt != 0 {
				t.Errorf("%+v", st)
			}
			if name == "not to be fetched" && m.calls.Load() > 3 {
				t.Errorf("it was asked %d times", m.calls.Load())
			}
			if n := f.blob.calls.Load(); n > 30 {
				t.Errorf("%d requests to the blob", n)
			}
		})
	}
}

// TestCopyLeftMeanwhile: what is under way from a copy that others have left comes from it all the
// same.
func TestCopyLeftMeanwhile(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	f, _, _ := withCopy(t, func(c *Copy, m *memory) {
		last := c.Frames[20]
		m.b[last.Off+last.Size/2] ^= 8
		m.fault = func(ctx context.Context, _ int, _ []byte, off int64) error {
			if off == last.Off {
				return ctx.Err()
			}
			close(arrived)
			<-goOn
			return ctx.Err()
		}
	})
	off, n := f.span(3)
	done := make(chan error)
	go func() { done <- f.read(t.Context(), off, n) }()
	<-arrived
	wrong, size := f.span(20)
	f.mustRead(wrong, size)
	before := f.blob.calls.Load()
	close(goOn)
	must(t, <-done)
	if f.blob.calls.Load() != before {
		t.Error("it was fetched from the blob")
	}
	f.all()
}

// TestCopyThatHangs: who waits in vain for a copy is the last to.
func TestCopyThatHangs(t *testing.T) {
	f, m, _ := withCopy(t, func(_ *Copy, m *memory) {
		m.fault = func(ctx context.Context, _ int, _ []byte, _ int64) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
	})
	f.o.Deadline = 100 * time.Millisecond
	off, n := f.span(3)
	if err := f.read(t.Context(), off, n); !errors.Is(err, ErrDeadline) {
		t.Errorf("from a copy that hangs: %v", err)
	}
	f.o.Deadline = DefaultDeadline
	f.mustRead(off, n)
	if m.calls.Load() == 0 {
		t.Error("the copy was not asked")
	}
}

// TestCopyOfTooLarge: a span that the budget has no room for, but for its frame, fails by itself,
// and holds up nobody.
func TestCopyOfTooLarge(t *testing.T) {
	f, _, _ := withCopy(t, func(c *Copy, m *memory) {
		c.Frames[3] = index.Range{Size: 1}
	})
	f.o.Budget = line.New(4<<10, 0) // less than any span has in the blob
	off, n := f.span(3)
	if err := f.read(t.Context(), off, n); !errors.Is(err, line.ErrTooLarge) {
		t.Errorf("a span that is too large: %v", err)
	}
	f.nothingTaken()
	if err := f.o.Budget.Fetch.Acquire(t.Context(), 4<<10+1, line.NewClaim(line.Demand)); !errors.Is(err, line.ErrTooLarge) {
		t.Errorf("more than there is: %v", err)
	}
}
