package store

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestEvict(t *testing.T) {
	s := newLargeSample(21, 30)
	dir := t.TempDir()
	st := open(t, dir)
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, s.all()...)
	must(t, st.Flush())
	full, err := l.DiskUsage()
	must(t, err)
	before := l.evictions.Load()
	gone := []int{0, 1, 2, 9, 28, 29}
	var want int64
	for _, i := range gone {
		want += int64(len(s.span(i)))
	}
	freed, err := l.Evict(append(gone, 9))
	must(t, err)
	if freed != want {
		t.Errorf("%d bytes evicted, want %d", freed, want)
	}
	if l.evictions.Load() == before {
		t.Error("a reader would not notice")
	}
	left := slices.DeleteFunc(s.all(), func(i int) bool { return slices.Contains(gone, i) })
	s.mustHave(t, l, left...)
	if now, err := l.DiskUsage(); err != nil || full-now < want-10*punchAlign {
		t.Errorf("the disk got %d bytes back of %d, %v", full-now, want, err)
	}
	for _, i := range gone {
		if p := make([]byte, len(s.span(i))); true {
			if _, err := l.readAt(p, s.starts[i]); err != nil || bytes.ContainsFunc(p, func(r rune) bool { return r != 0 }) {
				t.Errorf("span %d is no hole: %v", i, err)
			}
		}
	}
	// A span that comes back is there, and after another run it still is.
	s.write(t, l, 9)
	must(t, l.Close())
	must(t, st.Close())
	st = open(t, dir)
	l = s.layer(t, st)
	left = append(left, 9)
	slices.Sort(left)
	s.mustHave(t, l, left...)
	// Everything can go, and then takes next to nothing.
	_, err = l.Evict(s.all())
	must(t, err)
	s.mustHave(t, l)
	must(t, st.Flush())
	if now, err := l.DiskUsage(); err != nil || now > 64<<10 {
		t.Errorf("an empty layer takes %d bytes, %v", now, err)
	}
	must(t, l.Close())
	must(t, st.Close())
}

// TestEvictComplete: a complete layer is lazy again, a verified one keeps all that it has.
func TestEvictComplete(t *testing.T) {
	s := newSample(22, 20)
	dir := t.TempDir()
	st := open(t, dir)
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, s.all()...)
	must(t, l.Mark(Complete))
	_, err := l.Evict([]int{3})
	must(t, err)
	if got := l.Record().State; got != Lazy {
		t.Errorf("the layer is %s", got)
	}
	if err := l.Mark(Verified); err == nil {
		t.Error("a layer with a hole was marked verified")
	}
	if _, err := l.Evict([]int{4}); err != nil {
		t.Errorf("after a mark that failed: %v", err)
	}
	s.write(t, l, 3, 4)
	must(t, l.Mark(Verified))
	for range 2 {
		if _, err := l.Evict([]int{5}); !errors.Is(err, ErrSealed) {
			t.Errorf("evict from a verified layer: %v", err)
		}
		s.mustHave(t, l, s.all()...)
		must(t, l.Close())
		must(t, st.Close())
		st = open(t, dir)
		l = s.layer(t, st)
	}
	must(t, l.Close())
	must(t, st.Close())
}

// TestSealOutlivesRecord: a layer that came whole can be mounted before the disk says that it is
// whole. A run that is killed then leaves a mount over a device that the next run takes for an
// empty one.
func TestSealOutlivesRecord(t *testing.T) {
	s := newSample(23, 20)
	dir := t.TempDir()
	st := open(t, dir)
	l := s.mustCreate(t, st, Verified)
	mounted, err := os.Open(l.DevicePath()) // as the kernel does
	must(t, err)
	defer mounted.Close()
	if _, err := os.Stat(l.Dir() + "/" + recordName); err != nil {
		t.Fatal(err)
	}
	must(t, st.lock.Close()) // killed: no flush

	again := open(t, dir)
	m := s.layer(t, again)
	s.mustHave(t, m)
	s.write(t, m, s.all()...)
	_, err = m.Evict(s.all())
	must(t, err)
	got := make([]byte, len(s.device))
	if _, err := mounted.ReadAt(got, 0); err != nil || !bytes.Equal(got, s.device) {
		t.Errorf("the kernel reads something else: %v", err)
	}
	must(t, m.Close())
	must(t, again.Close())
}

func TestEmpty(t *testing.T) {
	s := newSample(24, 20)
	dir := t.TempDir()
	st := open(t, dir)
	l := s.mustCreate(t, st, Verified)
	must(t, st.Flush())
	mounted, err := os.Open(l.DevicePath())
	must(t, err)
	defer mounted.Close()
	if _, err := l.readAt(make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	before := l.evictions.Load()
	must(t, l.Empty())
	if l.evictions.Load() == before {
		t.Error("a reader would not notice")
	}
	s.mustHave(t, l)
	if got := l.Record().State; got != Lazy {
		t.Errorf("the layer is %s", got)
	}
	got := make([]byte, len(s.device))
	if _, err := mounted.ReadAt(got, 0); err != nil || !bytes.Equal(got, s.device) {
		t.Errorf("who has the old device reads something else: %v", err)
	}
	s.write(t, l, 3, 7)
	s.mustHave(t, l, 3, 7)
	_, err = l.Evict([]int{7})
	must(t, err)
	must(t, l.Close())
	must(t, st.Close())
	st = open(t, dir)
	l = s.layer(t, st)
	s.mustHave(t, l, 3)
	must(t, l.Close())
	must(t, st.Close())
}

// TestEmptyFails: a layer that cannot be emptied has what it had.
func TestEmptyFails(t *testing.T) {
	f := &failing{op: "rename", base: deviceName, err: unix.EIO}
	st, _ := openFaulty(t, f)
	s := newSample(30, 20)
	l := s.mustCreate(t, st, Verified)
	must(t, st.Flush())
	f.on.Store(true)
	if err := l.Empty(); !errors.Is(err, unix.EIO) {
		t.Errorf("empty: %v", err)
	}
	s.mustHave(t, l, s.all()...)
	f.on.Store(false)
	must(t, l.Empty())
	s.mustHave(t, l)
	must(t, l.Close())
	must(t, st.Close())
}

// TestEvictFails: a span whose absence could not be recorded stays, bytes and all.
func TestEvictFails(t *testing.T) {
	for _, op := range []string{"open", "write", "sync"} {
		t.Run(op, func(t *testing.T) {
			f := &failing{op: op, base: presentName, err: unix.EIO}
			st, dir := openFaulty(t, f)
			s := newSample(25, 20)
			l := s.mustCreate(t, st, Lazy)
			s.write(t, l, 1, 2, 3)
			must(t, st.Flush())
			f.on.Store(true)
			if n, err := l.Evict([]int{2}); !errors.Is(err, unix.EIO) || n != 0 {
				t.Errorf("%d bytes evicted, %v", n, err)
			}
			s.mustHave(t, l, 1, 2, 3)
			f.on.Store(false)
			must(t, l.Close())
			must(t, st.Close())
			st = open(t, dir)
			l = s.layer(t, st)
			s.mustHave(t, l, 1, 2, 3)
			must(t, l.Close())
			must(t, st.Close())
		})
	}
}

// TestEvictWhileRead: readers that do as Evictions says never see a hole, whatever comes and goes.
func TestEvictWhileRead(t *testing.T) {
	s := newLargeSample(26, 24)
	st := open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, s.all()...)
	must(t, st.Flush())
	var stop atomic.Bool
	var reads, retries atomic.Int64
	var running sync.WaitGroup
	for k := range 4 {
		running.Go(func() {
			p := make([]byte, 1<<20)
			for i := k; !stop.Load(); i = (i + 7) % s.spans() {
				want := s.span(i)
				before := l.evictions.Load()
				if !l.Present(i) {
					continue
				}
				n, err := l.readAt(p[:len(want)], s.starts[i])
				if l.evictions.Load() != before {
					retries.Add(1)
					continue
				}
				reads.Add(1)
				if n != len(want) || !bytes.Equal(p[:n], want) {
					t.Errorf("span %d is wrong: %d bytes, %v", i, n, err)
					return
				}
			}
		})
	}
	running.Go(func() {
		for n := 0; !stop.Load(); n++ {
			for i := range s.spans() {
				if err := l.WriteSpan(i, s.span(i)); err != nil {
					t.Error(err)
				}
			}
			if n%5 == 4 {
				if err := st.Flush(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	end := time.Now().Add(2 * time.Second)
	for n := 0; time.Now().Before(end); n++ {
		if n%20 == 19 {
			must(t, l.Empty())
			continue
		}
		if _, err := l.Evict([]int{n % s.spans(), (n + 1) % s.spans(), (n + 9) % s.spans()}); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	running.Wait()
	if reads.Load() < 100 {
		t.Errorf("%d reads, %d retries", reads.Load(), retries.Load())
	}
	if err := s.check(l); err != nil {
		t.Error(err)
	}
	must(t, l.Close())
	must(t, st.Close())
}

// TestCut: a device that is cut while it is open never shows zeros for what it lost.
func TestCut(t *testing.T) {
	s := newSample(27, 20)
	st := open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, 1, 5, 18)
	must(t, st.Flush())
	must(t, os.Truncate(l.DevicePath(), s.starts[4]))
	if err := l.WriteSpan(19, s.span(19)); !errors.Is(err, ErrCut) {
		t.Errorf("write behind the end: %v", err)
	}
	if n, err := l.readAt(make([]byte, 10), s.starts[18]); n == 10 {
		t.Errorf("what was lost is read: %v", err)
	}
	if n, err := l.length(); err != nil || n != s.starts[4] {
		t.Errorf("length is %d, %v", n, err)
	}
	_, err := l.Evict([]int{5, 18})
	must(t, err)
	must(t, l.Restore())
	s.mustHave(t, l, 1)
	s.write(t, l, 5, 19)
	s.mustHave(t, l, 1, 5, 19)
	must(t, l.Close())
	must(t, st.Close())
}

func TestRepair(t *testing.T) {
	s := newSample(28, 20)
	st := open(t, t.TempDir())
	l := s.mustCreate(t, st, Verified)
	must(t, st.Flush())
	f, err := os.OpenFile(l.DevicePath(), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("wrong"), s.starts[3])
	must(t, err)
	must(t, f.Truncate(s.starts[18]+1))
	if err := l.Repair(19, s.span(19)); !errors.Is(err, ErrCut) {
		t.Errorf("a repair left a hole: %v", err)
	}
	for _, i := range []int{3, 18, 19} {
		must(t, l.Repair(i, s.span(i)))
	}
	s.mustHave(t, l, s.all()...)
	must(t, l.VerifyWhole(t.Context()))
	must(t, l.Close())
	must(t, st.Close())
}

func TestLastRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(29, 70)
		dir := t.TempDir()
		st := open(t, dir)
		l := s.mustCreate(t, st, Lazy)
		start := time.Now()
		s.write(t, l, 3, 4, 69)
		time.Sleep(time.Hour)
		l.Touched(4, 5)
		l.Touched(60, 1000)
		l.Used()
		for range 2 {
			for i, want := range map[int]time.Time{3: start, 4: start.Add(time.Hour), 69: start.Add(time.Hour)} {
				if got := l.LastRead(i); got.Sub(want).Abs() > time.Minute {
					t.Errorf("span %d was read at %v, not %v", i, got, want)
				}
			}
			if got := l.LastUsed(); got.Sub(start.Add(time.Hour)).Abs() > time.Minute {
				t.Errorf("used at %v", got)
			}
			must(t, l.Close())
			must(t, st.Close())
			time.Sleep(time.Hour)
			st = open(t, dir)
			l = s.layer(t, st)
		}
		// Without the file everything counts as read now.
		name := l.Dir() + "/" + readsName
		must(t, l.Close())
		must(t, os.WriteFile(name, []byte("x"), 0o600))
		l = s.layer(t, st)
		if got := l.LastRead(3); time.Since(got).Abs() > time.Minute {
			t.Errorf("after damage span 3 was read at %v", got)
		}
		must(t, l.Close())
		must(t, st.Close())
	})
}

func FuzzReads(f *testing.F) {
	r := &reads{spans: make([]atomic.Uint32, 3)}
	r.touch(1, 2)
	f.Add(r.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		got := &reads{spans: make([]atomic.Uint32, 3)}
		if got.decode(b) != nil {
			return
		}
		now := got.second()
		for i := range got.spans {
			if got.spans[i].Load() > now {
				t.Errorf("span %d was read in the future", i)
			}
		}
		if again := (&reads{spans: make([]atomic.Uint32, 3)}); again.decode(got.encode()) != nil {
			t.Error("what was decoded cannot be encoded")
		}
	})
}
