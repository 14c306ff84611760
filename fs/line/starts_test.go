package line

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestStarts(t *testing.T) {
	now := time.Now()
	busy := load{at: now.Add(time.Hour), cores: float64(runtime.NumCPU())} // not measured again
	idle := load{at: now.Add(time.Hour)}
	start, reading := now.Add(time.Second), now.UnixNano()
	for name, tc := range map[string]struct {
		until time.Time
		read  int64
		told  time.Time
		last  time.Time
		load  load
		quiet time.Duration
		began time.Time // the replay's latest request
		ended time.Time
		want  time.Duration
	}{
		"no start": {load: busy, read: reading, last: now, quiet: time.Hour},
		"start, idle machine": {until: start, read: reading, last: now, load: idle,
			quiet: time.Hour},
		"start, busy machine": {until: start, read: reading, last: now, load: busy,
			quiet: time.Hour, want: lookAgain},
		"busy, and long held": {until: start, read: reading, last: now.Add(-trickle),
			load: busy, quiet: time.Hour},
		"busy, but reads wait": {until: start, read: reading, last: now, load: busy,
			quiet: time.Millisecond},
		"busy, but nothing is read": {until: start, read: now.Add(-time.Second).UnixNano(),
			last: now, load: busy, quiet: time.Hour},
		"busy, and about to read": {until: start, told: now.Add(-announced / 2), last: now,
			load: busy, quiet: time.Hour, want: lookAgain},
		"busy, but never read": {until: start, told: now.Add(-announced), last: now,
			load: busy, quiet: time.Hour},
		"start that is long over": {until: now.Add(-time.Second), read: reading, last: now,
			load: busy, quiet: time.Hour},
		"replay": {load: idle, quiet: time.Millisecond, began: now,
			want: lookAgain},
		"replay that hangs": {load: idle, quiet: time.Millisecond,
			began: now.Add(-2 * replayTime)},
		"reads waited for a replay": {until: start, read: reading, last: now, load: busy, quiet: 100 * time.Millisecond, ended: now.Add(-120 * time.Millisecond), want: lookAgain},
		"reads wait after a replay": {until: start, read: reading, last: now, load: busy,
			quiet: 10 * time.Millisecond, ended: now.Add(-120 * time.Millisecond)},
	} {
		s := Starts{
			until: tc.until, told: tc.told, last: tc.last, load: tc.load,
			replayBegan: tc.began, replayEnded: tc.ended,
		}
		if !tc.began.IsZero() {
			s.replays = 1
		}
		s.read.Store(tc.read)
		if got := s.fillWaitsLocked(now, tc.quiet); got != tc.want {
			t.Errorf("%s: held for %v, want %v", name, got, tc.want)
		}
	}
}

// TestCalm: what is done for a complete layer waits while a container starts on a busy machine, but
// for no longer than a start takes.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(0, 0).Starts
		s.load = load{at: time.Now().Add(time.Hour), cores: float64(runtime.NumCPU())}
		wait := func(ctx context.Context) time.Duration {
			begin := time.Now()
			s.Calm(ctx)
			return time.Since(begin)
		}
		if took := wait(t.Context()); took != 0 {
			t.Errorf("%v where nothing starts", took)
		}
		s.Starting()
		if took := wait(t.Context()); took < announced || took > announced+2*lookAgain {
			t.Errorf("%v for a container that reads nothing, want %v", took, announced)
		}
		s.Starting()
		ctx, cancel := context.WithTimeout(t.Context(), announced/2)
		defer cancel()
		if took := wait(ctx); took > announced/2+lookAgain {
			t.Errorf("%v after the caller has ended", took)
		}
		ctx, cancel = context.WithCancel(t.Context())
		go func() {
			for ctx.Err() == nil {
				s.Starting()
				select {
				case <-ctx.Done():
				case <-time.After(announced / 2):
				}
			}
		}()
		if took := wait(t.Context()); took < startTime || took > startTime+2*lookAgain {
			t.Errorf("%v while one container after another starts, want %v", took, startTime)
		}
		cancel()
		s.load.cores = 0
		s.Starting()
		if took := wait(t.Context()); took != 0 {
			t.Errorf("%v on an idle machine", took)
		}
	})
}

// What this process uses is a part of what the machine uses, and not counted as others' load.
func TestLoad(t *testing.T) {
	var l load
	measure := func(now time.Time) float64 {
		busy, own, err := workTimes()
		if err != nil {
			t.Fatal(err)
		}
		l.measured(now, busy, own)
		return l.others(now)
	}
	begin := time.Now()
	if got := measure(begin); got != float64(runtime.NumCPU()) {
		t.Errorf("%.2f cores before anything was measured, want all", got)
	}
	busy, own := l.busy, l.own
	for time.Since(begin) < 300*time.Millisecond { // one core, or what others leave of it
	}
	others := measure(time.Now())
	busy, own = l.busy-busy, l.own-own
	if own < 30*time.Millisecond || busy < own-4*tick {
		t.Errorf("the machine worked %v, of that this process %v", busy, own)
	}
	if want := float64(busy-own) / float64(l.at.Sub(begin)); others < want-0.01 ||
		others > want+0.01 {
		t.Errorf("others used %.2f cores, want %.2f", others, want)
	}
}

// TestSlowMeasurement: a reader does not wait while the machine's load is measured.
func TestSlowMeasurement(t *testing.T) {
	s := New(0, 0).Starts
	asked, answer := make(chan struct{}), make(chan struct{})
	tell := sync.OnceFunc(func() { close(asked) })
	s.times = func() (time.Duration, time.Duration, error) {
		tell()
		<-answer
		return 0, 0, errors.ErrUnsupported
	}
	s.Starting()
	calm := make(chan struct{})
	go func() {
		defer close(calm)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s.Calm(ctx)
	}()
	<-asked
	reads := make(chan struct{})
	go func() {
		defer close(reads)
		s.Started()
		s.Reading()
		s.FillWaits()
	}()
	select {
	case <-reads:
	case <-time.After(10 * time.Second):
		t.Error("a reader waits")
	}
	close(answer)
	<-calm
	<-reads
}
