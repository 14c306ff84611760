package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/internal/layertest"
)

// A process's timer signals go to its first thread; a child's reads are to be made there.
func init() {
	if os.Getenv(childEnv) != "" {
		runtime.LockOSThread()
	}
}

// signalled is how many bytes a child with a timer reads.
const signalled = 64 << 10

// childSignals: FILE HOW MICROSECONDS copies the first bytes of a file to standard output, with a
// timer signal so often; 0: none.
func childSignals(args []string) error {
	path, how := args[0], args[1]
	us, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	flags := unix.O_RDONLY
	if how == "direct" {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return err
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGALRM)
	every := unix.Timeval{Usec: us}
	timer := unix.Itimerval{Interval: every, Value: every}
	if _, err := unix.Setitimer(unix.ItimerReal, timer); err != nil {
		return err
	}
	time.AfterFunc(20*time.Second, func() { os.Exit(1) }) // a reader that does not get on
	b := aligned(signalled)
	switch how {
	case "direct", "small reads":
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil {
			return err
		}
		// Not os.File's, which tries again what was interrupted.
		for off := 0; off < len(b); off += 4096 {
			if n, err := unix.Pread(fd, b[off:off+4096], int64(off)); err != nil || n != 4096 {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
		}
	default:
		m, err := unix.Mmap(fd, 0, len(b), unix.PROT_READ, unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		if how != "map with readahead" {
			if err := unix.Madvise(m, unix.MADV_RANDOM); err != nil {
				return err
			}
		}
		if how == "map in a call" {
			b = m // write(2) itself meets the page faults
		} else {
			copy(b, m)
		}
	}
	_, err = os.Stdout.Write(b)
	return err
}

// TestSignals: a reader that gets signals gets its bytes like any other, by as many requests: no
// error, no request made anew.
func TestSignals(t *testing.T) {
	l := layertest.Nasty().Make(t)
	content := l.Draft.Root.Children["big"].Extents[0]
	want := l.Data[content.Device:][:signalled]
	for _, tt := range []struct {
		top string
		how []string
		us  []string
	}{
		{"fuse", []string{"map", "map in a call", "map with readahead", "direct", "small reads"},
			[]string{"0", "1000", "10000", "100000"}},
		{"erofs", []string{"map", "map in a call", "small reads"}, []string{"0", "1000"}},
	} {
		for _, how := range tt.how {
			t.Run(tt.top+"/"+how, func(t *testing.T) {
				var undisturbed int64
				for _, us := range tt.us {
					var calls, cancelled atomic.Int64
					slow := func(ctx context.Context, _ int64, _ int) error {
						calls.Add(1)
						select {
						case <-time.After(12 * time.Millisecond):
						case <-ctx.Done():
							cancelled.Add(1)
						}
						return ctx.Err()
					}
					dir := mountTop(t, tt.top, l, &memDevice{data: l.Data, before: slow},
						erofs.Options{})
					got, err := tryChild(t, "signals", filepath.Join(dir, "big"), how, us)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("every %s µs: %d bytes, %v", us, len(got), err)
					}
					if us == "0" {
						undisturbed = calls.Load()
					}
					// Readahead goes by time.
					if n := calls.Load(); n > undisturbed*5/4+4 || cancelled.Load() > 0 {
						t.Errorf("every %s µs: %d reads, %d cancelled; %d without signals",
							us, n, cancelled.Load(), undisturbed)
					}
				}
			})
		}
	}
}

// TestKilledAmongSignals: a reader that gets signals and then SIGKILL ends, and so does its read.
func TestKilledAmongSignals(t *testing.T) {
	l := layertest.Nasty().Make(t)
	for _, how := range []string{"map", "direct"} {
		t.Run(how, func(t *testing.T) {
			ended := make(chan error, 1)
			dev := &memDevice{data: l.Data,
				before: func(ctx context.Context, _ int64, _ int) error {
					<-ctx.Done()
					ended <- ctx.Err()
					return ctx.Err()
				}}
			m := mountTree(t, l, dev)
			cmd := childCmd(t, "signals", filepath.Join(m.Dir(), "big"), how, "1000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "an interrupt", func() bool { return m.Stats().Requests["interrupt"] > 0 })
			select {
			case err := <-ended:
				t.Errorf("the read ended with %v before the kill", err)
			case <-time.After(300 * time.Millisecond):
			}
			start := time.Now()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("a killed reader ends after %s", took)
			}
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("the read ended with %v", err)
				}
			case <-time.After(2 * time.Second):
				t.Error("the read of a killed process goes on")
			}
		})
	}
}
