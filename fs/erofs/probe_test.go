package erofs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mica-snapshotter/mica/fs/erofs"
)

func TestProbe(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	// What is special in option strings must not be in paths.
	dir := filepath.Join(t.TempDir(), `with, comma:colon\back`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := erofs.Probe(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Checks {
		t.Log(c)
		if c.Err != nil {
			t.Errorf("does not work on a kernel that can do all: %v", c)
		}
	}
	for mode, want := range map[erofs.Mode]erofs.Backing{
		erofs.ModeLocal: erofs.File, erofs.ModeErofs: erofs.File, erofs.ModeFuse: erofs.Auto,
	} {
		if got, err := s.Backing(mode); err != nil || got != want {
			t.Errorf("mode %s: backing %q, %v; want %q", mode, got, err, want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil ||
		strings.Contains(string(table), "comma") {
		t.Errorf("left mounted, or %v", err)
	}
	goleak.VerifyNone(t, ignore)
}

func TestProbeElsewhere(t *testing.T) {
	if _, err := erofs.Probe(t.Context(), filepath.Join(t.TempDir(), "missing")); !errors.Is(err,
		os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

// A probe that is killed ends at once, whatever it is at, and what it leaves can be taken away.
func TestKilledProbe(t *testing.T) {
	dir := t.TempDir()
	for i := range 15 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], dir)
		cmd.Env = append(os.Environ(), childEnv+"=probe")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+17*i) * time.Millisecond)
		start := time.Now()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %v to die", took)
		}
		if err := erofs.ClearProbes(dir); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Fatalf("left behind: %v, %v", left, err)
		}
	}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil ||
		strings.Contains(string(table), dir) {
		t.Errorf("left mounted, or %v", err)
	}
}

func TestSupportSaysWhy(t *testing.T) {
	why := errors.New("no such kernel")
	s := erofs.Support{Checks: []erofs.Check{
		{Mode: erofs.ModeErofs, Backing: erofs.File, Err: why},
		{Mode: erofs.ModeErofs, Backing: erofs.Loop},
		{Mode: erofs.ModeLocal, Backing: erofs.File, Err: why},
	}}
	if b, err := s.Backing(erofs.ModeErofs); b != erofs.Loop || err != nil {
		t.Errorf("erofs: %q, %v; want loop", b, err)
	}
	if _, err := s.Backing(erofs.ModeLocal); !errors.Is(err, why) {
		t.Errorf("local: %v, want the reason", err)
	}
	if _, err := s.Backing(erofs.ModeFuse); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("fuse was not tried: %v", err)
	}
}
