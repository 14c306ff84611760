package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/erofs"
)

// noteEnv names the file in which a daemon notes its process.
const noteEnv = "MICA_TEST_NOTE"

// mainEnv makes the test binary micad.
const mainEnv = "MICA_TEST_MAIN"

// TestMain is the test, or a child that mounts or reads for it, or micad keep, or what that starts:
// a daemon that notes its process and waits.
func TestMain(m *testing.M) {
	if ran, err := erofs.RunChild(os.Args[1:], os.Stdin, os.Stdout); ran {
		exit(err)
	}
	if os.Getenv(mainEnv) != "" ||
		len(os.Args) > 1 && (os.Args[1] == "keep" || os.Args[1] == keepExec) {
		main()
		os.Exit(0)
	}
	if note := os.Getenv(noteEnv); note != "" && len(os.Args) == 1 {
		if err := os.WriteFile(note, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			os.Exit(1)
		}
		time.Sleep(2 * time.Minute)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// What runs after SIGHUP and after a death is what the file has then, by the name that micad was
// called by; where there is none it is the keeper's own version.
func TestKeepExecutesTheFileAnew(t *testing.T) {
	dir := t.TempDir()
	install(t, filepath.Join(dir, "one"))
	install(t, filepath.Join(dir, "two"))
	called := filepath.Join(dir, "micad")
	link(t, "one", called)

	note := filepath.Join(dir, "pid")
	k := exec.Command(called, "keep")
	k.Env = append(os.Environ(), noteEnv+"="+note)
	r, w, err := os.Pipe() // a log that nobody reads: what keeps must not die of it
	if err != nil {
		t.Fatal(err)
	}
	k.Stderr = w
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	defer func() { _ = k.Process.Kill() }()
	first := await(t, note, 0)
	if got := executable(t, first); got != filepath.Join(dir, "one") {
		t.Fatalf("%s runs at first", got)
	}

	link(t, "two", called)
	if err := k.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	second := await(t, note, first)
	if got := executable(t, second); got != filepath.Join(dir, "two") {
		t.Fatalf("%s runs after SIGHUP", got)
	}

	for _, name := range []string{"micad", "one", "two"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	third := await(t, note, second)
	if got := executable(t, third); got != filepath.Join(dir, "one")+" (deleted)" {
		t.Fatalf("%s runs where there is no file", got)
	}

	if err := k.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := k.Wait(); err != nil {
		t.Fatalf("micad keep ends: %v", err)
	}
	if err := syscall.Kill(third, 0); err == nil {
		t.Fatal("micad has outlived micad keep")
	}
}

// install copies this program to path.
func install(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o700); err != nil {
		t.Fatal(err)
	}
}

// link makes path a symbolic link to target, in one step.
func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// await waits until a process that is not old has noted itself, and returns its number.
func await(t *testing.T, note string, old int) int {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(note)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid != old {
			return pid
		}
	}
	t.Fatalf("no process but %d", old)
	return 0
}

func executable(t *testing.T, pid int) string {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// What cannot run at all is not started, again and again.
func TestKeepOfNothing(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(broken, []byte("mode = \"quick\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		says string
		good bool
	}{
		{[]string{"--help"}, "micad keep", true},
		{[]string{"--version"}, "micad " + version, true},
		{[]string{"--no-such-flag"}, "no-such-flag", false},
		{[]string{"--config", broken}, "quick", false},
		{[]string{"--config", filepath.Join(t.TempDir(), "none")}, "none", false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		out, err := exec.CommandContext(ctx, os.Args[0],
			append([]string{"keep"}, c.args...)...).CombinedOutput()
		cancel()
		if ctx.Err() == context.DeadlineExceeded || !strings.Contains(string(out), c.says) ||
			(err == nil) != c.good {
			t.Errorf("%v: %v\n%s", c.args, err, out)
		}
	}
}
