package main

import (
	"bytes"
	"context"
	"errors"
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

// strangers measures what share of the machine goes to others. script/test.sh
// gives this program and all that it starts a PID namespace of its own: whatever
// the machine is busy with beyond the processes that are visible there was
// caused by others, or by threads of the kernel.
type strangers struct {
	machine, own time.Duration
	start        time.Time
}

func watchStrangers() (s strangers, err error) {
	s.start = time.Now()
	s.machine, s.own, err = usage()
	return s, err
}

// usage returns the CPU time of the machine, without interrupts, and that of
// all visible processes, with those of their children that have ended.
func usage() (machine, visible time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(b)) // cpu user nice system …
	if len(fields) < 4 {
		return 0, 0, errors.New("/proc/stat is empty")
	}
	if machine, err = ticks(fields[1:4]); err != nil {
		return 0, 0, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	for _, d := range dirs {
		fields, err := stat(filepath.Base(d))
		if err != nil {
			continue // it has ended
		}
		used, err := ticks(fields[11:15])
		if err != nil {
			return 0, 0, err
		}
		visible += used
	}
	return machine, visible, nil
}

// share returns the strangers' part of the machine's CPU time since the start,
// 0 to 1; 0 where all processes are visible, strangers too.
func (s strangers) share() (float64, error) {
	machine, own, err := usage()
	if err != nil {
		return 0, err
	}
	others := (machine - s.machine) - (own - s.own)
	return max(0, others.Seconds()/(time.Since(s.start).Seconds()*float64(runtime.NumCPU()))), nil
}
