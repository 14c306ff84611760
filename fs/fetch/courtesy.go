package fetch

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// While a container starts and finds all that it reads at hand, fills take only cores that nobody else
// wants: decoding a layer on the cores that the container starts on makes it ready later, for bytes that it may
// never read. Where its reads wait for the network, the cores are idle, and what a fill brings helps.
const (
	startTime = 5 * time.Second        // how long a start is thought to take at the most
	calm      = 400 * time.Millisecond // it is over when nothing was read for that long
	unwaited  = 200 * time.Millisecond // reads that waited lately mean that the network is what it waits for
	busyShare = 0.25                   // of all cores: with more in use by others, fills wait
	lookAgain = 25 * time.Millisecond  // how long they wait before they look again
	trickle   = 250 * time.Millisecond // what they do in any case: one request in that time
	announced = 600 * time.Millisecond // a container that is about to start need not have read anything for so long

	replayTime = time.Second           // for how long after a replay's request they wait for it to end
	settling   = 50 * time.Millisecond // readers that waited for a replay have got their bytes so long after it
)

// courtesy decides whether a fill may begin a request. Guarded by Scheduler.mu, but for read.
type courtesy struct {
	until time.Time    // starts are under way until then
	read  atomic.Int64 // when something was read last, in nanoseconds since 1970
	told  time.Time    // when a container was about to start last
	last  time.Time    // when a request was let through last
	// When a request of a replay was begun last, and when one ended.
	replayBegan, replayEnded time.Time
	load                     load
}

// Started tells that a container begins to read: for some seconds fills leave the cores to it, as long as Reading is
// called.
func (s *Scheduler) Started() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.courtesy.started(time.Now())
}

// Starting tells that a container is about to begin to read, if what it reads is not in the kernel's memory already.
func (s *Scheduler) Starting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.courtesy.started(now)
	s.courtesy.told = now
}

// Calm waits, for as long as a start is thought to take, until no container that starts needs the cores.
func (s *Scheduler) Calm(ctx context.Context) {
	for end := time.Now().Add(startTime); ctx.Err() == nil && time.Now().Before(end); {
		s.measure(time.Now())
		s.mu.Lock()
		busy := s.courtesy.busy(time.Now())
		s.mu.Unlock()
		if !busy {
			return
		}
		pause(ctx, nil, lookAgain)
	}
}

func (c *courtesy) started(now time.Time) {
	if !now.Before(c.until) {
		c.last = now
	}
	c.until = now.Add(startTime)
}

// starting says that a container starts, as far as is known.
func (c *courtesy) starting(now time.Time) bool {
	return now.Before(c.until) && (now.UnixNano()-c.read.Load() < int64(calm) || now.Sub(c.told) < announced)
}

// busy says that a container starts and that others use the cores.
func (c *courtesy) busy(now time.Time) bool {
	return c.starting(now) && c.load.others(now) > busyShare*float64(runtime.NumCPU())
}

// measure measures the load again, if that is due. Readers wait for Scheduler.mu, and the kernel
// may take milliseconds to make /proc/stat: so it is read without that.
func (s *Scheduler) measure(now time.Time) {
	s.mu.Lock()
	due := s.courtesy.starting(now) && s.courtesy.load.due(now)
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
	s.courtesy.load.measured(now, busy, own)
}

// Reading tells that a container reads. It takes next to no time.
func (s *Scheduler) Reading() { s.courtesy.read.Store(time.Now().UnixNano()) }

// hold returns how long a fill has to wait before it asks again; 0: it may go on. quiet is for how long no read has
// waited for the network, replaying says that requests of replays are under way.
func (c *courtesy) hold(now time.Time, quiet time.Duration, replaying bool) time.Duration {
	if replaying && now.Sub(c.replayBegan) < replayTime {
		return lookAgain
	}
	// Those that waited for the replay do not count: it has brought what they waited for.
	waits := quiet < unwaited && quiet < now.Sub(c.replayEnded)-settling
	if !waits && now.Sub(c.last) < trickle && c.busy(now) {
		return lookAgain
	}
	c.last = now
	return 0
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
	measureAnew  = 500 * time.Millisecond // a measurement so old says nothing of the start that is under way
	tick         = 10 * time.Millisecond  // USER_HZ is 100 on all Linux architectures that Go knows but Alpha
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

// busyTime returns how long the machine's cores have worked, together: the first line of /proc/stat less idle and
// iowait (proc_stat(5)).
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
