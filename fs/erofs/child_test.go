package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/erofs"
)

// A mount is never touched by the process that serves what is under it: the test
// binary runs itself again, with these verbs.
var verbs = map[string]func(args []string) error{
	"direct": childDirect,
	"drain":  childDrain,
	"find":   childFind,
	"read":   childRead,
	"probe":  childProbe,
}

const childEnv = "MICA_TEST_CHILD"

func TestMain(m *testing.M) {
	if ran, err := erofs.RunChild(os.Args[1:], os.Stdin, os.Stdout); ran {
		exit(err)
	}
	if verb := os.Getenv(childEnv); verb != "" {
		exit(verbs[verb](os.Args[1:]))
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, err)
	var no unix.Errno
	if errors.As(err, &no) {
		os.Exit(int(no))
	}
	os.Exit(1)
}

// inChild runs a verb and returns its output.
func inChild(t testing.TB, verb string, args ...string) []byte {
	t.Helper()
	out, err := tryChild(t, verb, args...)
	if err != nil {
		t.Fatalf("%s %q: %v", verb, args, err)
	}
	return out
}

// tryChild runs a verb; an errno that the child met comes back as such.
func tryChild(t testing.TB, verb string, args ...string) ([]byte, error) {
	t.Helper()
	var out, msg bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	// With the race detector, a program waits a second at its end by default.
	cmd.Env = append(os.Environ(), childEnv+"="+verb, "GORACE=atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = &out, &msg
	err := cmd.Run()
	var code *exec.ExitError
	if errors.As(err, &code) && code.ExitCode() > 1 {
		return nil, fmt.Errorf("%s: %w", strings.TrimSpace(msg.String()),
			unix.Errno(code.ExitCode()))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, msg.String())
	}
	return out.Bytes(), nil
}

// childProbe: DIR probes there, again and again.
func childProbe(args []string) error {
	for {
		if _, err := erofs.Probe(context.Background(), args[0]); err != nil {
			return err
		}
	}
}

// childRead: FILE prints a file.
func childRead(args []string) error {
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b)
	return err
}

// childDrain: DIR|FILE reads all files and forgets them.
func childDrain(args []string) error {
	buf := make([]byte, 128<<10)
	return filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fd, err := unix.Open(path, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return errors.Join(fmt.Errorf("read %s: %w", path, err), unix.Close(fd))
			}
			if n == 0 {
				return unix.Close(fd)
			}
		}
	})
}

// childFind: DIR looks at everything in a tree.
func childFind(args []string) error {
	n := 0
	err := filepath.WalkDir(args[0], func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		n++
		return unix.Lstat(path, &st)
	})
	if err == nil && n < 2 {
		err = io.ErrUnexpectedEOF
	}
	return err
}
