package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mica-snapshotter/mica/fs/keeper"
	"github.com/mica-snapshotter/mica/fs/keeper/keepertest"
)

// What the test binary does as a child, by its first argument.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 {
		goleak.VerifyTestMain(m)
		return
	}
	// a child that is forgotten ends
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	switch os.Args[1] {
	case "exec":
		fmt.Fprintln(os.Stderr,
			ExecListening([]string{"/nonexistent/micad", "/proc/self/exe"},
				append([]string{os.Args[0]}, os.Args[2:]...)))
		os.Exit(1)
	case "live":
		lives, _ := strconv.Atoi(os.Args[3])
		if err := keepertest.Live(ctx, os.Args[2], lives); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "starts": // notes its start, and waits
		note(os.Args[2])
		<-ctx.Done()
	case "dies": // notes its start, and dies
		note(os.Args[2])
		os.Exit(3)
	case "wrong": // ends as if told what cannot be right; a further argument leaves a descriptor
		note(os.Args[2])
		if len(os.Args) > 3 {
			k, _, err := keeper.Inherit()
			if err == nil {
				err = k.Store(ctx, "one", os.Stdin)
			}
			if err != nil {
				os.Exit(5)
			}
		}
		os.Exit(78)
	case "stubborn": // does not end when it is told to
		signal.Ignore(syscall.SIGTERM)
		note(os.Args[2])
		<-ctx.Done()
	default:
		goleak.VerifyTestMain(m)
	}
}

// note writes a line about this process.
func note(path string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		os.Exit(4)
	}
	fmt.Fprintf(f, "%d %d\n", os.Getpid(), time.Now().UnixNano())
	f.Close()
}

// running is a supervisor at work on this test binary as its child.
type running struct {
	t       *testing.T
	restart chan os.Signal
	stop    context.CancelFunc
	ended   chan error
}

func run(t *testing.T, o Options, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, restart: make(chan os.Signal, 1), stop: cancel, ended: make(chan error, 1)}
	o.Path, o.Args = "/proc/self/exe", append([]string{os.Args[0], "exec"}, args...)
	o.Env = append(os.Environ(), "LISTEN_FDS=7", "LISTEN_PID=1", "FDSTORE=9",
		"NOTIFY_SOCKET=/nowhere")
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	go func() { r.ended <- Run(ctx, o, r.restart) }()
	t.Cleanup(r.end)
	return r
}

// end stops the supervisor, once.
func (r *running) end() {
	if r.stop == nil {
		return
	}
	r.stop()
	r.stop = nil
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("the supervisor ends: %v", err)
		}
	case <-time.After(10 * time.Second):
		r.t.Error("the supervisor does not end")
	}
}

// lines waits for n lines of a file.
func lines(t *testing.T, path string, n int, patience time.Duration) []string {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(path)
		if all := strings.Split(strings.TrimSpace(string(b)), "\n"); len(all) >= n && len(b) > 0 {
			return all
		}
		if time.Now().After(end) {
			t.Fatalf("%s after %v: %q, want %d lines", path, patience, b, n)
		}
	}
}

// fields takes a line apart: the process, and a time or more.
func fields(t *testing.T, line string) (pid int, at time.Time) {
	t.Helper()
	var ns int64
	if _, err := fmt.Sscan(line, &pid, &ns); err != nil {
		t.Fatalf("line %q: %v", line, err)
	}
	return pid, time.Unix(0, ns)
}

func openFiles(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

func TestKilledAHundredTimes(t *testing.T) {
	const lives = 101
	dir := t.TempDir()
	before := openFiles(t)
	r := run(t, Options{backoff: backoff{eager: true}}, "live", dir, strconv.Itoa(lives))
	for i, line := range lines(t, filepath.Join(dir, keepertest.Report), lives, 3*time.Minute) {
		if n, rest, _ := strings.Cut(line, " "); n != strconv.Itoa(i) ||
			!strings.HasSuffix(rest, " ok") {
			t.Fatalf("life %d: %s", i, line)
		}
	}
	r.end()
	if now := openFiles(t); now != before {
		t.Fatalf("%d files are open, %d were", now, before)
	}
}

func TestStartsAgainAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "starts")
	run(t, Options{}, "starts", file)
	for i := range 3 {
		pid, _ := fields(t, lines(t, file, i+1, 5*time.Second)[i])
		killed := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, at := fields(t,
			lines(t, file, i+2, 5*time.Second)[i+1]); at.Sub(killed) > 2*time.Second {
			t.Fatalf("start %d comes after %v", i+1, at.Sub(killed))
		}
	}
}

func TestBacksOffFromWhatDiesAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "starts")
	began := time.Now()
	r := run(t, Options{}, "dies", file)
	time.Sleep(1500 * time.Millisecond)
	all := lines(t, file, 4, 30*time.Second)
	took := time.Since(began)
	r.end()
	// 0, 0, 0, 50, 100, 200, 400, 800 ms
	if len(all) > 9 && took < 3*time.Second {
		t.Fatalf("%d starts in %v", len(all), took)
	}
}

// TestWrong: what cannot be right is not tried again, unless something waits for it.
func TestWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "starts")
	r := run(t, Options{Wrong: 78}, "wrong", file)
	select {
	case err := <-r.ended:
		if !errors.Is(err, ErrWrong) {
			t.Errorf("the supervisor ends: %v", err)
		}
		r.ended <- nil
	case <-time.After(10 * time.Second):
		t.Error("the supervisor does not end")
	}
	lines(t, file, 1, time.Second)
	file = filepath.Join(t.TempDir(), "starts")
	run(t, Options{Wrong: 78}, "wrong", file, "leave")
	lines(t, file, 3, 10*time.Second)
}

func TestBackoff(t *testing.T) {
	var b backoff
	for i, want := range []time.Duration{0, 0, 0, 50, 100, 200, 400, 800, 1600, 3000, 3000} {
		if got := b.next(shortLife/2, false); got != want*time.Millisecond {
			t.Errorf("short life %d: %v, want %v", i, got, want*time.Millisecond)
		}
	}
	for range 100 { // the acceptance test's rate: a life of three seconds
		if got := b.next(3*time.Second, false); got != 0 {
			t.Fatalf("after a long life: %v", got)
		}
	}
	for range 10 {
		if got := b.next(0, true); got != 0 {
			t.Fatalf("after a restart that was asked for: %v", got)
		}
	}
}

func TestRestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "starts")
	r := run(t, Options{}, "starts", file)
	old, _ := fields(t, lines(t, file, 1, 5*time.Second)[0])
	r.restart <- syscall.SIGHUP
	next, _ := fields(t, lines(t, file, 2, 5*time.Second)[1])
	if old == next {
		t.Fatal("the same process")
	}
	r.end()
	if err := syscall.Kill(next, 0); err == nil {
		t.Fatal("the child has outlived its supervisor's end")
	}
}

func TestKillsWhoDoesNotEnd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "starts")
	r := run(t, Options{stopTimeout: 100 * time.Millisecond}, "stubborn", file)
	pid, _ := fields(t, lines(t, file, 1, 5*time.Second)[0])
	r.end()
	if err := syscall.Kill(pid, 0); err == nil {
		t.Fatal("the child is alive")
	}
}

func TestNothingToStart(t *testing.T) {
	err := Run(context.Background(),
		Options{Path: "/nonexistent", Args: []string{"x"}, Log: slog.Default()}, nil)
	if err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Fatal(err)
	}
}
