package line

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startTime = 5 * time.Second        // how long a start is thought to take at the most
	calm      = 400 * time.Millisecond // it is over when nothing was read for that long
	unwaited  = 200 * time.Millisecond // reads that waited lately wait for the network
	busyShare = 0.25                   // of all cores: with more in use by others, fills wait
	lookAgain = 25 * time.Millisecond  // how long they wait before they look again
	trickle   = 250 * time.Millisecond // in which time fills begin one request in any case
	announced = 600 * time.Millisecond // for how long one that is about to start need not read

	replayTime = time.Second           // how long fills wait for a replay's request
	settling   = 50 * time.Millisecond // after which readers of a replay have got their bytes
)

// Starts says whether a container that starts needs the cores. While it finds all that it reads at
// hand, fills take only cores that nobody else wants: decoding a layer on the cores that the
// container starts on makes it ready later, for bytes that it may never read. Where its reads wait
// for the network, the cores are idle, and what a fill brings helps.
type Starts struct {
	readers *readers
	times   func() (all, own time.Duration, err error) // workTimes, or a test's
	read    atomic.Int64                               // when something was read last, Unix ns

	mu    sync.Mutex // not held while the load is measured
	until time.Time  // starts are under way until then
	told  time.Time  // when a container was about to start last
	last  time.Time  // when a fill's request was let through last
	// Replays: requests under way, and when one was begun last, and one ended.
	replays                  int
	replayBegan, replayEnded time.Time
	load                     load
}

// Started tells that a container begins to read: for some seconds fills leave the cores to it, as
// long as Reading is called.
func (s *Starts) Started() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.startedLocked(time.Now())
}

// Starting tells that a container is about to begin to read, if what it reads is not in the
// kernel's memory already.
func (s *Starts) Starting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = time.Now()
	s.startedLocked(s.told)
}

func (s *Starts) startedLocked(now time.Time) {
	if !now.Before(s.until) {
		s.last = now
	}
	s.until = now.Add(startTime)
}

// Reading tells that a container reads. It takes next to no time.
func (s *Starts) Reading() { s.read.Store(time.Now().UnixNano()) }

// ReplayBegan tells that a replay has begun a request, and ReplayEnded that it is over.
func (s *Starts) ReplayBegan() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replays++
	s.replayBegan = time.Now()
}

// ReplayEnded is paired with ReplayBegan.
func (s *Starts) ReplayEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replays--
	s.replayEnded = time.Now()
}

// Calm waits, for as long as a start is thought to take, until no container that starts needs the
// cores.
func (s *Starts) Calm(ctx context.Context) {
	for end := time.Now().Add(startTime); ctx.Err() == nil && time.Now().Before(end); {
		s.Measure()
		s.mu.Lock()
		busy := s.busyLocked(time.Now())
		s.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
}

// FillWaits returns how long a fill has to wait before it asks again; 0: it may begin a request. It
// looks at what Measure has found.
func (s *Starts) FillWaits() time.Duration {
	quiet := s.readers.unwaited()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fillWaitsLocked(time.Now(), quiet)
}

// fillWaitsLocked is FillWaits where no read has waited for the network for so long.
func (s *Starts) fillWaitsLocked(now time.Time, quiet time.Duration) time.Duration {
	if s.replays > 0 && now.Sub(s.replayBegan) < replayTime {
		return lookAgain
	}
	// Those that waited for the replay do not count: it has brought what they waited for.
	waits := quiet < unwaited && quiet < now.Sub(s.replayEnded)-settling
	if !waits && now.Sub(s.last) < trickle && s.busyLocked(now) {
		return lookAgain
	}
	s.last = now
	return 0
}

// startingLocked says that a container starts, as far as is known.
func (s *Starts) startingLocked(now time.Time) bool {
	reads := now.UnixNano()-s.read.Load() < int64(calm)
	return now.Before(s.until) && (reads || now.Sub(s.told) < announced)
}

// busyLocked says that a container starts and that others use the cores.
func (s *Starts) busyLocked(now time.Time) bool {
	return s.startingLocked(now) && s.load.others(now) > busyShare*float64(runtime.NumCPU())
}

// Measure measures the load again, if that is due. The kernel may take milliseconds to make
// /proc/stat: nobody waits meanwhile but the caller.
func (s *Starts) Measure() {
	now := time.Now()
	s.mu.Lock()
	due := s.startingLocked(now) && s.load.due(now)
	s.mu.Unlock()
	if !due {
		return
	}
	busy, own, err := s.times()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load.measured(now, busy, own)
}

// load measures how many cores other processes use.
type load struct {
	at    time.Time     // of the last measurement
	busy  time.Duration // time that all processes had, since the machine started
	own   time.Duration // of that, this process
	cores float64       // that others used between the last two measurements
}

const (
	// measureEvery is several ticks of the kernel's counters, which come every 10 ms.
	measureEvery = 60 * time.Millisecond
	// measureAnew is how old a measurement says nothing of the start that is under way.
	measureAnew = 500 * time.Millisecond
	// tick is a USER_HZth of a second: 100 on all Linux architectures that Go knows but Alpha.
	tick = 10 * time.Millisecond
)

// due says that the last measurement says little of now.
func (l *load) due(now time.Time) bool { return now.Sub(l.at) >= measureEvery }

// measured takes a measurement: how long all processes have worked, and this one.
func (l *load) measured(now time.Time, busy, own time.Duration) {
	passed := now.Sub(l.at)
	switch {
	case passed <= 0:
		return
	case passed < measureAnew:
		l.cores = float64(busy-l.busy-(own-l.own)) / float64(passed)
	default:
		l.cores = float64(runtime.NumCPU())
	}
	l.at, l.busy, l.own = now, busy, own
}

// others returns the number of cores that other processes used lately; all of them where that was
// measured too long ago. Where it cannot be measured it is 0.
func (l *load) others(now time.Time) float64 {
	if !l.at.IsZero() && now.Sub(l.at) >= measureAnew {
		return float64(runtime.NumCPU())
	}
	return l.cores
}

// workTimes returns how long all processes of the machine have worked since it started, and this
// one of them.
func workTimes() (all, own time.Duration, err error) {
	all, err = busyTime()
	return all, ownTime(), err
}

// busyTime returns how long the machine's cores have worked, together: the first line of /proc/stat
// less idle and iowait (proc_stat(5)).
func busyTime() (time.Duration, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [512]byte
	n, err := f.Read(b[:])
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(b[:n], []byte("\n"))
	fields := bytes.Fields(line)
	var ticks int64
	// cpu user nice system idle iowait irq softirq steal …
	for i, f := range fields {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		v, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += v
	}
	return time.Duration(ticks) * tick, nil
}

// ownTime returns how long this process has worked.
func ownTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
