package fetch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const block = 1000 // bytes of a fake layer's spans

// fake is a layer of so many blocks. A request brings up to two.
type fake struct {
	name  string
	n     int64
	delay time.Duration
	fault func(off int64) error // nil: none
	log   *log
	next  func() // called after Next has looked; nil: nothing is

	mu       sync.Mutex
	present  map[int64]bool
	expected int64
	most     int // requests at a time
	running  int
}

// log is what was fetched, in order.
type log struct {
	mu  sync.Mutex
	all []string
}

func (l *log) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

func (l *log) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.all
	l.all = nil
	return all
}

func (f *fake) Size() int64 { return f.n * block }

func (f *fake) Next(off, end int64, _ line.Priority) (layer.Missing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := min((end+block-1)/block, f.n)
	i := off / block
	for i < last && f.present[i] {
		i++
	}
	if i >= last {
		if f.next != nil {
			f.next()
		}
		return layer.Missing{}, nil
	}
	n := int64(1)
	if i+1 < last && !f.present[i+1] {
		n = 2
	}
	return layer.Missing{Off: i * block, Size: n * block, Bytes: n * block / 2}, nil
}

func (f *fake) Fetch(ctx context.Context, off, n int64, prio line.Priority) error {
	f.mu.Lock()
	f.running++
	f.most = max(f.most, f.running)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.running--
	}()
	if f.log != nil {
		kind := map[line.Priority]string{line.Replay: "replay", line.Near: "near", line.Background: "fill"}[prio]
		f.log.add(fmt.Sprintf("%s %s %d+%d", kind, f.name, off/block, n/block))
	}
	select {
	case <-time.After(f.delay):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if f.fault != nil {
		if err := f.fault(off); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := off / block; i < (off+n)/block; i++ {
		f.present[i] = true
	}
	return nil
}

func (f *fake) Expect(_, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expected += n
	return nil
}

func (f *fake) Uses() layer.Uses {
	f.mu.Lock()
	defer f.mu.Unlock()
	return layer.Uses{Brought: int64(len(f.present)) * block}
}

func (f *fake) id() digest.Digest { return digest.FromString(f.name) }

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.present)
}

// run runs test in a bubble with a scheduler that ends with it.
func run(t *testing.T, o Options, test func(t *testing.T, s *Scheduler, l *log)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Log = slog.New(slog.DiscardHandler)
		s := New(o)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		test(t, s, &log{})
		cancel()
		wg.Wait()
	})
}

func (l *log) layer(name string, n int64) *fake {
	return &fake{name: name, n: n, delay: time.Second, log: l, present: map[int64]bool{}}
}

// filling returns how many layers are filled.
func (s *Scheduler) filling() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.fills)
}

// replaying returns how many replays have something left to fetch.
func (s *Scheduler) replaying() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.replays)
}

func expect(t *testing.T, l *log, want ...string) {
	t.Helper()
	synctest.Wait()
	got := l.take()
	if !slices.Equal(got, want) {
		t.Errorf("fetched %q, want %q", got, want)
	}
}

func TestOrder(t *testing.T) {
	run(t, Options{ReplayRequests: 1, FillRequests: 1}, func(t *testing.T, s *Scheduler, l *log) {
		a, b := l.layer("a", 5), l.layer("b", 3)
		b.present[1] = true
		r := s.Replay([]Range{{b.id(), 2100, 10}, {a.id(), 3000, 1}, {b.id(), 99_000, 1}}, nil)
		expect(t, l)
		s.Add(a.id(), a)
		expect(t, l, "replay a 3+1") // b is not known yet
		s.Add(b.id(), b)
		s.Fill(b.id())
		s.Fill(a.id())
		expect(t, l)
		time.Sleep(time.Second)
		expect(t, l, "replay b 2+1")
		<-r.done
		time.Sleep(time.Hour)
		expect(t, l, "fill b 0+1", "fill a 0+2", "fill a 2+1", "fill a 4+1")
		if a.count() != 5 || b.count() != 3 {
			t.Errorf("%d and %d blocks are there", a.count(), b.count())
		}
		want := Stats{ReplayRequests: 2, FillRequests: 4, ReplayBytes: 1000, FillBytes: 2500}
		if got := s.Stats(); got != want {
			t.Errorf("stats are %+v", got)
		}
		if st := r.Stats(); !st.Finished || st.Ranges != 3 || st.Brought == 0 {
			t.Errorf("stats of the replay are %+v", st)
		}
	})
}

// TestFillAgain: what goes of a layer while its fill finds that nothing is missing is fetched when
// Fill is called once more, and so is what goes later.
func TestFillAgain(t *testing.T) {
	run(t, Options{FillRequests: 1}, func(t *testing.T, s *Scheduler, l *log) {
		a := l.layer("a", 3)
		a.present = map[int64]bool{0: true, 1: true, 2: true}
		a.next = sync.OnceFunc(func() {
			delete(a.present, 1)
			s.Fill(a.id())
		})
		s.Add(a.id(), a)
		s.Fill(a.id())
		time.Sleep(time.Minute)
		expect(t, l, "fill a 1+1")
		a.mu.Lock()
		delete(a.present, 2)
		a.mu.Unlock()
		s.Fill(a.id())
		time.Sleep(time.Minute)
		expect(t, l, "fill a 2+1")
	})
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want []string
	}{
		{Options{Fill: None}, nil},
		{Options{Fill: Profile}, []string{"replay a 1+1"}},
		{Options{Fill: All, MaxLayer: 1999}, []string{"replay a 1+1"}},
		{Options{Fill: All, MaxLayer: 2000}, []string{"replay a 1+1", "fill a 0+1"}},
	} {
		run(t, c.o, func(t *testing.T, s *Scheduler, l *log) {
			a := l.layer("a", 2)
			a.delay = time.Second / 2 // less than fills wait for a replay
			r := s.Replay([]Range{{a.id(), 1000, 1}}, nil)
			s.Add(a.id(), a)
			synctest.Wait()
			s.Fill(a.id())
			<-time.After(2 * time.Second)
			expect(t, l, c.want...)
			<-r.done
		})
	}
}

// TestOutage: a layer that cannot be fetched is left alone for longer and longer; the others go on.
func TestOutage(t *testing.T) {
	run(t, Options{}, func(t *testing.T, s *Scheduler, l *log) {
		a, b := l.layer("a", 4), l.layer("b", 4)
		var down atomic.Bool
		down.Store(true)
		a.fault = func(int64) error {
			if down.Load() {
				return errors.New("503")
			}
			return nil
		}
		s.Add(a.id(), a)
		s.Add(b.id(), b)
		s.Fill(a.id())
		s.Fill(b.id())
		r := s.Replay([]Range{{a.id(), 0, 1}}, nil)
		time.Sleep(10 * time.Minute)
		n := len(l.take())
		if n < 10 || n > 60 {
			t.Errorf("%d requests in ten minutes", n)
		}
		if b.count() != 4 || s.filling() != 1 {
			t.Errorf("the other layer has %d blocks", b.count())
		}
		down.Store(false)
		<-r.done
		time.Sleep(5 * time.Second)
		if a.count() != 4 || s.filling() != 0 {
			t.Errorf("%d blocks after the outage", a.count())
		}
	})
}

// TestNoAnswer: a registry that never answers does not hold up another.
func TestNoAnswer(t *testing.T) {
	run(t, Options{FillRequests: 2}, func(t *testing.T, s *Scheduler, l *log) {
		a, b := l.layer("a", 40), l.layer("b", 4)
		a.delay = 365 * 24 * time.Hour
		for _, f := range []*fake{a, b} {
			s.Add(f.id(), f)
			s.Fill(f.id())
		}
		time.Sleep(2 * time.Minute)
		if b.count() != 4 {
			t.Errorf("%d blocks", b.count())
		}
	})
}

func TestCorrupt(t *testing.T) {
	run(t, Options{FillRequests: 1}, func(t *testing.T, s *Scheduler, l *log) {
		a := l.layer("a", 40)
		a.fault = func(off int64) error {
			if off >= 4000 {
				return fmt.Errorf("span 4: %w", index.ErrCorrupt)
			}
			return nil
		}
		s.Add(a.id(), a)
		s.Fill(a.id())
		time.Sleep(time.Hour)
		expect(t, l, "fill a 0+2", "fill a 2+2", "fill a 4+2")
		r := s.Replay([]Range{{a.id(), 20_000, 1}}, nil)
		s.Fill(a.id())
		<-r.done
		expect(t, l)
		if !s.layers[a.id()].stopped || s.filling() != 0 {
			t.Error("it is still filled")
		}
	})
}

// TestForget ends what is under way, and nothing of the layer is used afterwards.
func TestForget(t *testing.T) {
	run(t, Options{FillRequests: 3}, func(t *testing.T, s *Scheduler, l *log) {
		a := l.layer("a", 100)
		a.delay = 365 * 24 * time.Hour
		r := s.Replay([]Range{{a.id(), 50_000, 1}}, nil)
		s.Add(a.id(), a)
		s.Fill(a.id())
		time.Sleep(2 * time.Second) // longer than fills wait for a replay
		synctest.Wait()
		if a.running != 4 {
			t.Errorf("%d requests", a.running)
		}
		start := time.Now()
		s.Forget(a.id())
		if a.running != 0 || time.Since(start) > 0 {
			t.Errorf("%d requests after %s", a.running, time.Since(start))
		}
		l.take()
		<-r.done
		time.Sleep(time.Hour)
		expect(t, l)
		if s.filling() != 0 || s.replaying() != 0 {
			t.Errorf("%d fills and %d replays are left", s.filling(), s.replaying())
		}
		// A layer of that name may come again.
		a.delay = 0
		s.Add(a.id(), a)
		s.Fill(a.id())
		time.Sleep(time.Second)
		if a.count() != 100 {
			t.Errorf("%d blocks", a.count())
		}
		s.Forget(a.id())
		s.Forget(a.id())
	})
}

func TestBounds(t *testing.T) {
	run(t, Options{FillRequests: 5, ReplayRequests: 7, Bandwidth: 10 * block}, func(t *testing.T, s *Scheduler, l *log) {
		a := l.layer("a", 200)
		a.delay = 0
		start := time.Now()
		s.Add(a.id(), a)
		s.Fill(a.id())
		for a.count() < 200 {
			time.Sleep(100 * time.Millisecond)
		}
		// 100,000 compressed bytes at 10,000 a second.
		if d := time.Since(start); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("took %s", d)
		}
	})
	run(t, Options{FillRequests: 5, ReplayRequests: 7}, func(t *testing.T, s *Scheduler, l *log) {
		a := l.layer("a", 200)
		s.Add(a.id(), a)
		s.Fill(a.id())
		time.Sleep(time.Minute)
		synctest.Wait()
		if a.most != 5 {
			t.Errorf("%d at a time", a.most)
		}
		b := l.layer("b", 200)
		s.Add(b.id(), b)
		<-s.Replay([]Range{{b.id(), 0, 200_000}}, nil).done
		if b.most != 7 {
			t.Errorf("%d at a time", b.most)
		}
	})
}

// TestClose: a replay ends although layers of its ranges never come, and what is left of these is
// dropped: of layers that come late, that lack nothing, that go.
func TestClose(t *testing.T) {
	run(t, Options{}, func(t *testing.T, s *Scheduler, l *log) {
		a, late, whole := l.layer("a", 10), l.layer("late", 10), l.layer("whole", 10)
		s.Add(a.id(), a)
		r := s.Replay([]Range{{late.id(), 0, 1}, {whole.id(), 0, 1}, {a.id(), 0, 1}}, nil)
		synctest.Wait()
		if r.Stats().Finished || s.replaying() != 1 {
			t.Errorf("layers may still come: %+v", r.Stats())
		}
		s.Whole(whole.id())
		r.Close()
		<-r.done
		if n := s.replaying(); n != 0 {
			t.Errorf("%d replays are left", n)
		}
		for _, f := range []*fake{late, whole} {
			s.Add(f.id(), f)
		}
		time.Sleep(time.Minute)
		expect(t, l, "replay a 0+1")
	})
	// What is not known yet is in its place when it is known.
	run(t, Options{ReplayRequests: 1}, func(t *testing.T, s *Scheduler, l *log) {
		a, b := l.layer("a", 20), l.layer("b", 600)
		s.Add(b.id(), b)
		r := s.Replay([]Range{{b.id(), 0, 1}, {a.id(), 0, 1}, {b.id(), 500_000, 1}}, nil)
		s.Add(a.id(), a)
		<-r.done
		expect(t, l, "replay b 0+1", "replay a 0+1", "replay b 500+1")
	})
}

// TestForgottenIsFree: a replay that is over keeps no layer that is closed.
func TestForgottenIsFree(t *testing.T) {
	run(t, Options{}, func(t *testing.T, s *Scheduler, l *log) {
		a := l.layer("a", 10)
		s.Add(a.id(), a)
		r := s.Replay([]Range{{a.id(), 0, 1}}, nil)
		<-r.done
		before := r.Stats()
		s.Forget(a.id())
		for _, u := range r.seen {
			if u.layer != nil {
				t.Error("the layer is kept")
			}
		}
		if after := r.Stats(); after != before || after.Brought == 0 {
			t.Errorf("%+v before, %+v after", before, after)
		}
		many := l.layer("b", 10)
		s.Add(many.id(), many)
		for range 3 * usesMost {
			<-s.Replay([]Range{{many.id(), 0, 1}}, nil).done
		}
		if n := len(s.layers[many.id()].uses); n > usesMost {
			t.Errorf("%d replays are kept", n)
		}
	})
}

func TestArrange(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	const mib = 1 << 20
	for name, c := range map[string]struct{ in, want []Range }{
		"nothing":            {nil, nil},
		"neighbours":         {[]Range{{a, 5000, 100}, {b, 0, 1}, {a, 4000, 900}}, []Range{{a, 4000, 1100}, {b, 0, 1}}},
		"far apart":          {[]Range{{a, 5 * mib, 100}, {a, 0, 100}}, []Range{{a, 5 * mib, 100}, {a, 0, 100}}},
		"one inside another": {[]Range{{a, 0, 5000}, {a, 100, 10}}, []Range{{a, 0, 5000}}},
		"the first group is small": {
			[]Range{{a, 32 * mib, 4 * mib}, {a, 36 * mib, 4 * mib}, {a, 28 * mib, 4 * mib}, {a, 24 * mib, 4 * mib}},
			[]Range{{a, 32 * mib, 8 * mib}, {a, 24 * mib, 8 * mib}},
		},
		"nonsense": {[]Range{{a, -1, 5}, {a, 0, 0}, {a, 1<<63 - 1, 1<<63 - 1}, {a, 7, -9}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Arrange(c.in); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
