// Package keepertest is what a keeper of descriptors has to be able to, whichever it is: a daemon
// that uses package keeper, checks in each of its lives what the former ones have left, and dies by
// SIGKILL.
package keepertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/keeper"
)

// window is for how many lives a set is kept.
const window = 5

// Report is the file in the daemon's folder with a line for each life: "ok", or what was wrong.
// After an error or the last life the daemon stays alive.
const Report = "report"

// Live is one life of the daemon: the main function of a test's child. The last life, number
// lives-1, waits for ctx.
func Live(ctx context.Context, dir string, lives int) error {
	n, err := count(filepath.Join(dir, "lives"))
	if err != nil {
		return err
	}
	socket := os.Getenv("NOTIFY_SOCKET")
	l := &life{n: n, socket: socket}
	verdict := "ok"
	if err := l.live(ctx); err != nil {
		verdict = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	f, err := os.OpenFile(filepath.Join(dir, Report), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d %d %s\n", n, os.Getpid(), verdict)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if verdict == "ok" && n < lives-1 {
		l.storm(ctx)
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	<-ctx.Done()
	return nil
}

// count adds one to the number in the file, and returns what it was.
func count(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	n, _ := strconv.Atoi(string(b))
	return n, os.WriteFile(path, []byte(strconv.Itoa(n+1)), 0o644)
}

// life is the n-th one.
type life struct {
	n      int
	socket string
	k      *keeper.Keeper
}

func (l *life) live(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	k, held, err := keeper.Inherit()
	// The life before has left a set that is not whole, which is told; nothing else is wrong.
	// So is a descriptor of a stranger. Those of the life before that are gone.
	lost := []string{fmt.Sprintf("half-%d.0.2", l.n-1), fmt.Sprintf("stranger-%d", l.n-1)}
	for _, name := range lost {
		if told := err != nil && strings.Contains(err.Error(), name); told != (l.n > 0) {
			return fmt.Errorf("inherit: %w, want it to be about %s", err, name)
		}
		before := strings.Replace(name, strconv.Itoa(l.n-1), strconv.Itoa(l.n-2), 1)
		if err != nil && strings.Contains(err.Error(), before) {
			return fmt.Errorf("inherit: %w: %s was dropped", err, before)
		}
	}
	if !k.Keeps() {
		return errors.New("nothing keeps")
	}
	for _, v := range []string{"NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDS",
		"LISTEN_FDNAMES"} {
		if os.Getenv(v) != "" {
			return fmt.Errorf("$%s is left", v)
		}
	}
	l.k = k
	if err := l.check(ctx, held); err != nil {
		return err
	}
	return l.change(ctx)
}

// check compares what is held with what the lives before have stored.
func (l *life) check(ctx context.Context, held []keeper.Held) error {
	seen := make(map[string]bool)
	for _, h := range held {
		if strings.HasPrefix(h.Name, "storm-") {
			if len(h.Files) != 3 {
				return fmt.Errorf("%s has %d files", h.Name, len(h.Files))
			}
			if err := l.k.Drop(ctx, h.Name); err != nil {
				return err
			}
			continue
		}
		number, ok := strings.CutPrefix(h.Name, "life-")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < l.n-window || n >= l.n || seen[h.Name] {
			return fmt.Errorf("%s is held in life %d", h.Name, l.n)
		}
		seen[h.Name] = true
		if len(h.Files) != 2+n%2 {
			return fmt.Errorf("%s has %d files", h.Name, len(h.Files))
		}
		for i, f := range h.Files {
			if err := same(f, n, i); err != nil {
				return fmt.Errorf("file %d of %s: %w", i, h.Name, err)
			}
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil ||
				flags&unix.FD_CLOEXEC == 0 {
				return fmt.Errorf("file %d of %s is inherited by children: %d, %w", i, h.Name,
					flags, err)
			}
			f.Close()
		}
	}
	if want := min(l.n, window); len(seen) != want {
		return fmt.Errorf("%d sets are held in life %d, want %d", len(seen), l.n, want)
	}
	return nil
}

// change stores a set and drops the oldest.
func (l *life) change(ctx context.Context) error {
	name := fmt.Sprintf("life-%d", l.n)
	files, err := newFiles(l.n, 2+l.n%2)
	if err != nil {
		return err
	}
	if err := l.k.Store(ctx, name, files...); err != nil {
		return err
	}
	if err := l.k.Store(ctx, name, files...); !errors.Is(err, keeper.ErrStored) {
		return fmt.Errorf("stored twice: %w", err)
	}
	if err := l.k.Drop(ctx, fmt.Sprintf("life-%d", l.n-window)); err != nil {
		return err
	}
	if err := l.raw(fmt.Sprintf("half-%d.0.2", l.n)); err != nil {
		return err
	}
	if err := l.raw(fmt.Sprintf("stranger-%d", l.n)); err != nil {
		return err
	}
	// A set that is dropped is closed when Drop returns: the pipe has no other end then.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	err = errors.Join(l.k.Store(ctx, "pipe", w), w.Close(), l.k.Drop(ctx, "pipe"))
	if err := errors.Join(err, r.SetReadDeadline(time.Now().Add(5*time.Second))); err != nil {
		return err
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("a pipe whose end is dropped: %w", err)
	}
	return l.k.Ready(fmt.Sprintf("life %d\nof a cat", l.n))
}

// raw stores a file by the protocol alone: the first of two as one who dies before the second, or
// one that is not package keeper's.
func (l *life) raw(name string) error {
	f, err := memfd(name)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: l.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.Sendmsg(int(fd), []byte("FDSTORE=1\nFDPOLL=0\nFDNAME="+name),
			unix.UnixRights(int(f.Fd())), nil, 0)
	})
	return errors.Join(err, inner)
}

// storm stores sets until somewhere in the middle of it.
func (l *life) storm(ctx context.Context) {
	for w := range 4 {
		go func() { // ends with the process
			for i := 0; i < 8; i++ {
				files, err := newFiles(l.n, 3)
				if err != nil {
					return
				}
				_ = l.k.Store(ctx, fmt.Sprintf("storm-%d-%d-%d", l.n, w, i), files...)
			}
		}()
	}
	time.Sleep(time.Duration(l.n%8) * 200 * time.Microsecond)
}

// newFiles makes the files of life n: one of /dev/fuse, which all look alike, then files that tell
// who they are.
func newFiles(n, files int) ([]*os.File, error) {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	list := []*os.File{dev}
	for i := 1; i < files; i++ {
		f, err := memfd(text(n, i))
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

func text(n, i int) string { return fmt.Sprintf("life %d, file %d", n, i) }

func memfd(content string) (*os.File, error) {
	fd, err := unix.MemfdCreate("keepertest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "memfd")
	_, err = f.WriteAt([]byte(content), 0)
	return f, err
}

// same checks that f is file i of life n.
func same(f *os.File, n, i int) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if i == 0 {
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(10, 229) {
			return fmt.Errorf("mode %o, device %x: not /dev/fuse", st.Mode, st.Rdev)
		}
		return nil
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	if err != nil || string(b) != text(n, i) {
		return fmt.Errorf("%q, %w", b, err)
	}
	return nil
}
