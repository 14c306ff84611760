package fetch

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// While a container starts, fills take only cores that nobody else wants: decoding a layer on the cores that the
// container starts on makes it ready later, for bytes that it may never read.
const (
	startTime = 15 * time.Second       // how long a start is thought to take
	busyShare = 0.25                   // of all cores: with more in use by others, fills wait
	lookAgain = 25 * time.Millisecond  // how long they wait before they look again
	trickle   = 250 * time.Millisecond // what they do in any case: one request in that time
)

// courtesy decides whether a fill may begin a request. Guarded by Scheduler.mu.
type courtesy struct {
	until time.Time // starts are under way until then
	last  time.Time // when a request was let through last
	load  load
}

// Started tells that a container begins to read: for some seconds fills leave the cores to it.
func (s *Scheduler) Started() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.courtesy.until = time.Now().Add(startTime)
}

// hold returns how long a fill has to wait before it asks again; 0: it may go on.
func (c *courtesy) hold(now time.Time) time.Duration {
	if now.After(c.until) {
		return 0
	}
	if c.load.others(now) > busyShare*float64(runtime.NumCPU()) && now.Sub(c.last) < trickle {
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
	tick         = 10 * time.Millisecond // USER_HZ is 100 on all Linux architectures that Go knows but Alpha
)

// others returns the number of cores that other processes used lately. Where that cannot be
// measured it is 0.
func (l *load) others(now time.Time) float64 {
	passed := now.Sub(l.at)
	if passed < measureEvery {
		return l.cores
	}
	busy, err := busyTime()
	if err != nil {
		return 0
	}
	own := ownTime()
	if !l.at.IsZero() {
		l.cores = float64(busy-l.busy-(own-l.own)) / float64(passed)
	}
	l.at, l.busy, l.own = now, busy, own
	return l.cores
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
