package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of CPU times in /proc: USER_HZ is 100 on all that Linux runs on.
const tick = 10 * time.Millisecond

// cpu returns the CPU time of a process and of the children that it has waited for.
func cpu(pid int) (time.Duration, error) {
	fields, err := stat(strconv.Itoa(pid))
	if err != nil {
		return 0, err
	}
	return ticks(fields[11:15])
}

// stat returns the fields of /proc/PID/stat (proc_pid_stat(5)) behind the
// command: the state is the first, the CPU times are the 12th to the 15th.
func stat(pid string) ([]string, error) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 15 {
		return nil, fmt.Errorf("/proc/%s/stat has %d fields", pid, len(fields))
	}
	return fields, nil
}

func ticks(fields []string) (time.Duration, error) {
	var sum time.Duration
	for _, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// peak returns the largest resident memory that a process has had (VmHWM), in bytes.
func peak(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var n int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &n); err == nil {
			return n << 10, nil
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", pid)
}

// dropCaches empties the machine's page cache, as after a boot.
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		return fmt.Errorf("empty the page cache: %w", err)
	}
	return nil
}

// quiet waits until the machine was idle to nine tenths for a second, at most
// as long as limit.
func quiet(ctx context.Context, limit time.Duration) error {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		busy, all, err := machine()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		busy2, all2, err := machine()
		if err != nil {
			return err
		}
		if 10*(busy2-busy) < all2-all {
			return nil
		}
	}
	return nil
}

// machine returns the CPU time of all processors so far, busy and in all.
func machine() (busy, all time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 {
		return 0, 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	if all, err = ticks(fields[1:9]); err != nil {
		return 0, 0, err
	}
	idle, err := ticks(fields[4:6])
	return all - idle, all, err
}

// strangers measures what share of the machine goes to processes that have
// nothing to do with a measurement: those that were there before it and are
// not in own. Kernel threads do its work too and do not count.
type strangers struct {
	own    map[string]bool
	before map[string]time.Duration
	start  time.Time
}

func watchStrangers(own ...int) (*strangers, error) {
	s := &strangers{own: map[string]bool{strconv.Itoa(os.Getpid()): true}, start: time.Now()}
	for _, pid := range own {
		s.own[strconv.Itoa(pid)] = true
	}
	var err error
	s.before, err = s.used()
	return s, err
}

// used returns the CPU time of every stranger.
func (s *strangers) used() (map[string]time.Duration, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	used := map[string]time.Duration{}
	for _, d := range dirs {
		pid := filepath.Base(d)
		fields, err := stat(pid)
		if err != nil || s.own[pid] || pid == "2" || fields[1] == "2" { // gone; own; kthreadd and its children
			continue
		}
		if used[pid], err = ticks(fields[11:13]); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// share returns the strangers' part of the machine's CPU time since the start, 0 to 1.
func (s *strangers) share() (float64, error) {
	now, err := s.used()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for pid, before := range s.before {
		if after, ok := now[pid]; ok {
			sum += after - before
		}
	}
	return sum.Seconds() / (time.Since(s.start).Seconds() * float64(runtime.NumCPU())), nil
}
