package layer

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/mica-snapshotter/mica/fs/line"
)

// pushing is a Push of a test.
type pushing struct {
	f      *fixture
	frames map[int][]byte

	mu   sync.Mutex
	sent map[int]bool // of what is coming, whether it is on its way
	over chan struct{}
	end  func()
}

// Coming implements Push.
func (p *pushing) Coming(i int, sent bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	already, ok := p.sent[i]
	return ok && (already || !sent)
}

// Over implements Push.
func (p *pushing) Over() <-chan struct{} { return p.over }

// stop ends the push.
func (p *pushing) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.sent)
	p.end()
}

// offer offers spans and waits until none is used any more.
func (p *pushing) offer(spans ...int) {
	var offers sync.WaitGroup
	for _, i := range spans {
		p.mu.Lock()
		delete(p.sent, i)
		p.mu.Unlock()
		offers.Add(1)
		p.f.Offer(p.f.t.Context(), i, p.frames[i], func(wrong error) {
			if wrong != nil {
				p.stop()
			}
			offers.Done()
		})
	}
	offers.Wait()
}

var pushedSpans = []int{20, 2, 3, 4, 5, 6, 7, 8, 9}

// withPush opens a lazy layer of which spans 2 to 9 and 20 are on their way by a push.
func withPush(t *testing.T, change func(*pushing, *Options)) (*fixture, *pushing) {
	t.Helper()
	s := newSample(t)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	must(t, err)
	defer z.Close()
	p := &pushing{frames: map[int][]byte{}, sent: map[int]bool{}, over: make(chan struct{})}
	p.end = sync.OnceFunc(func() { close(p.over) })
	for _, i := range pushedSpans {
		p.frames[i] = z.EncodeAll(s.device[s.spans[i].Device:][:s.spans[i].Size], nil)
		p.sent[i] = true
	}
	p.f = setup(t, s, func(_ *fixture, o *Options) {
		o.Push = p
		if change != nil {
			change(p, o)
		}
	})
	return p.f, p
}

// all reads the device, in pieces that have little to do with spans.
func (f *fixture) all() {
	f.t.Helper()
	const n = 300_000
	for off := int64(0); off < f.Size(); off += n {
		f.mustRead(off, min(n, f.Size()-off))
	}
}

// waits waits until so many spans are waited for.
func (f *fixture) waits(spans int) {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		n := 0
		for _, fl := range f.flights {
			n += min(len(fl.waiters), 1)
		}
		f.mu.Unlock()
		if n == spans {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%d spans are waited for, want %d", n, spans)
		}
	}
}

// TestPush: what a push brings is not asked for, readers and those ahead of them wait for it.
func TestPush(t *testing.T) {
	for _, prio := range []line.Priority{line.Demand, line.Ahead, line.Replay, line.Background} {
		f, p := withPush(t, nil)
		off, _ := f.span(2)
		last, n := f.span(9)
		done := make(chan error)
		go func() { done <- f.Fetch(t.Context(), off, last+n-off, prio) }()
		f.waits(8)
		p.offer(pushedSpans...)
		must(t, <-done)
		f.mustRead(off, last+n-off)
		off, n = f.span(20)
		f.mustRead(off+7, n-7)
		if b, w := f.blob.calls.Load(), f.windows.calls.Load(); b != 0 || w != 0 {
			t.Errorf("%d requests to the blob, %d to the windows", b, w)
		}
		if f.Lacks(20) || !f.Lacks(21) {
			t.Error("it lacks what it has, or not what it has not")
		}
		f.all()
		f.wait()
		if f.completed.Load() != 1 {
			t.Errorf("%d times complete", f.completed.Load())
		}
		// What goes later comes from the blob.
		_, err := f.Evict([]int{3})
		must(t, err)
		before := f.blob.calls.Load()
		off, n = f.span(3)
		f.mustRead(off, n)
		if f.blob.calls.Load() != before+1 {
			t.Error("a span that had come before was not asked for")
		}
	}
}

// TestPushOfNoUse: a push that is wrong, or does not come, costs no reader anything.
func TestPushOfNoUse(t *testing.T) {
	for name, change := range map[string]func(p *pushing){
		"wrong bytes":  func(p *pushing) { p.frames[5][len(p.frames[5])/2] ^= 4 },
		"another span": func(p *pushing) { p.frames[4], p.frames[5] = p.frames[5], p.frames[4] },
		"cut":          func(p *pushing) { p.frames[6] = p.frames[6][:100] },
		"no such span": func(p *pushing) { p.frames[1000], p.sent[1000] = p.frames[2], true },
		"large frames": func(p *pushing) { p.frames[4] = make([]byte, line.DefaultFetchBytes) },
		"all are tiny": func(p *pushing) {
			for i := range p.frames {
				p.frames[i] = []byte{1}
			}
		},
		"nothing comes": func(p *pushing) { clear(p.frames) },
	} {
		t.Run(name, func(t *testing.T) {
			f, p := withPush(t, func(p *pushing, _ *Options) { change(p) })
			var reads sync.WaitGroup
			reads.Go(f.all)
			for _, prio := range []line.Priority{line.Replay, line.Background} {
				reads.Go(func() { must(t, f.Fetch(t.Context(), 0, f.Size(), prio)) })
			}
			f.waits(len(pushedSpans))
			var all []int
			for i := range p.frames {
				all = append(all, i)
			}
			p.offer(all...)
			p.stop()
			reads.Wait()
			f.wait()
			if f.completed.Load() != 1 {
				t.Error("not complete")
			}
			if st := f.Stats(); st.Corrupt != 0 || st.LastError != nil {
				t.Errorf("%+v", st)
			}
			if n := f.blob.calls.Load(); n > 30 {
				t.Errorf("%d requests to the blob", n)
			}
			f.nothingTaken()
		})
	}
}

// TestPushAhead: a reader does not wait for what is not on its way yet, whoever else does, and
// takes nobody's place in what is.
func TestPushAhead(t *testing.T) {
	f, p := withPush(t, func(p *pushing, _ *Options) {
		for _, i := range []int{2, 3, 4, 5} {
			p.sent[i] = false
		}
	})
	off, _ := f.span(2)
	last, n := f.span(9)
	done := make(chan error)
	go func() { done <- f.Fetch(t.Context(), off, last+n-off, line.Replay) }()
	f.waits(8)
	off, n = f.span(3)
	f.mustRead(off, n)
	if n := f.blob.calls.Load(); n != 1 {
		t.Errorf("%d requests for what is not on its way", n)
	}
	go func() {
		off, n := f.span(6)
		f.mustRead(off, n)
		done <- nil
	}()
	p.offer(3, 6, 7) // the first of these is dropped
	must(t, <-done)
	p.stop()
	must(t, <-done)
	f.wait()
	if n := f.blob.calls.Load(); n != 4 { // 2; 4 and 5; 8 and 9
		t.Errorf("%d requests", n)
	}
}

// TestPushMeanwhile: a span that a request is under way for is not taken twice.
func TestPushMeanwhile(t *testing.T) {
	f, p := withPush(t, func(p *pushing, _ *Options) { delete(p.sent, 3) })
	arrived, goOn := make(chan struct{}), make(chan struct{})
	f.blob.fault = func(ctx context.Context, _ int, _ []byte, _ int64) error {
		close(arrived)
		<-goOn
		return ctx.Err()
	}
	off, n := f.span(3)
	done := make(chan error)
	go func() { done <- f.read(t.Context(), off, n) }()
	<-arrived
	if f.Lacks(3) {
		t.Error("a span on its way is lacked")
	}
	p.offer(3)
	if f.present(off, off+n) {
		t.Error("it was taken")
	}
	close(goOn)
	must(t, <-done)
}

// TestPushThatHangs: who waits in vain for a push ends in time.
func TestPushThatHangs(t *testing.T) {
	f, p := withPush(t, nil)
	f.o.Deadline = 100 * time.Millisecond
	off, n := f.span(3)
	if err := f.read(t.Context(), off, n); !errors.Is(err, ErrDeadline) {
		t.Errorf("from a push that hangs: %v", err)
	}
	f.o.Deadline = DefaultDeadline
	p.stop()
	f.mustRead(off, n)
}

// TestPushOfTooLarge: a span that the budget has no room for, but for its frame, fails by itself,
// and holds up nobody.
func TestPushOfTooLarge(t *testing.T) {
	f, p := withPush(t, func(_ *pushing, o *Options) {
		o.Budget = line.New(4<<10, 0) // less than any span has in the blob
	})
	p.offer(3)
	off, n := f.span(3)
	if err := f.read(t.Context(), off, n); !errors.Is(err, line.ErrTooLarge) {
		t.Errorf("a span that is too large: %v", err)
	}
	f.nothingTaken()
	if err := f.o.Budget.Fetch.Acquire(t.Context(), 4<<10+1, line.NewUrgency(line.Demand)); !errors.Is(err, line.ErrTooLarge) {
		t.Errorf("more than there is: %v", err)
	}
}
