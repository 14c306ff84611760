package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ran returns what a command line prints.
func ran(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := command(&options{})
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// TestConfigDefault: what is printed is a configuration file that changes nothing.
func TestConfigDefault(t *testing.T) {
	text, err := ran(t, "config", "default")
	if err != nil {
		t.Fatal(err)
	}
	got, err := configure(t, text)
	if want := defaults(); err != nil || len(differing(got, want)) > 0 {
		t.Errorf("%+v, %v, want %+v of\n%s", got, err, want, text)
	}
}

func TestConfigCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	for text, want := range map[string]string{
		`mode = "erofs"`: "",
		`mode = "quick"`: "quick",
		`rooot = "/x"`:   "unknown keys",

		"read_deadline = 300":            `"300": write a duration`, // not nanoseconds
		"[cache]\nscrub_interval = 3600": `"3600": write a duration`,
		`pull_deadline = "90"`:           `line 1: pull_deadline: "90": write a duration`,
		"log_level = 4":                  `"4": use debug, info`,
		`log_level = "loud"`:             `"loud": use debug, info, warn or error`,
		"[fetch]\nmax_requests = '8'":    "line 2: fetch.max_requests: cannot decode TOML string: write",
		"mode = 'auto":                   "line 1: ",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		said, err := ran(t, "config", "check", "--config", path)
		if want == "" && (err != nil || !strings.Contains(said, path+" is right")) ||
			want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v", text, said, err)
		}
	}
	if _, err := ran(t, "config", "check", "--config", path+".none"); err == nil {
		t.Error("a file that is named and missing is right")
	}
}

func TestDiffering(t *testing.T) {
	a, b := defaults(), defaults()
	b.LogLevel, b.Mode, b.Fetch.Requests = level{slog.LevelDebug}, "fuse", 3
	if got := differing(a, b); !reflect.DeepEqual(got, []string{"mode", "fetch"}) {
		t.Errorf("%v differ", got)
	}
}

// lines is a log that tests wait for. Its methods may run in parallel.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) wait(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		l.mu.Lock()
		text := l.text.String()
		l.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
	}
	t.Fatalf("log lacks %q:\n%s", want, l.text.String())
}

// TestReload: SIGHUP sets the log's level, tells of the rest, and survives what is wrong.
func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	o := &options{}
	if err := command(o).ParseFlags([]string{"--config", path}); err != nil {
		t.Fatal(err)
	}
	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hangUp := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	set("")
	c, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	level, log := new(slog.LevelVar), &lines{}
	ctx, cancel := context.WithCancel(t.Context())
	var reloader sync.WaitGroup
	hup := heedHangUps()
	defer reloader.Wait()
	defer cancel()
	reloader.Go(func() {
		o.reload(ctx, hup, c, level, slog.New(slog.NewTextHandler(log, nil)))
	})
	set(`log_level = "quiet"`)
	hangUp()
	log.wait(t, "stays as it was")
	set("log_level = \"debug\"\nmode = \"fuse\"")
	hangUp()
	log.wait(t, "after_restart=mode")
	if level.Level() != slog.LevelDebug {
		t.Errorf("level %v", level.Level())
	}
}
