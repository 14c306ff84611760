// Package supervisor is the keeper of package keeper where no systemd is: a parent of the daemon
// that holds its descriptors, starts it again whenever it ends, and hands the descriptors to the
// next one. It speaks sd_notify(3)'s protocol and does nothing else, so that it needs little memory
// and has few ways to fail: its own end is the end of all that it holds.
//
//	datagram ─▶ socket: is it from the child? ─▶ notification ─▶ store of descriptors ─▶ LISTEN_FDS of the next child
//
// Run has one goroutine for the child and one for the socket; mu in socket orders what they do to
// the store. Nothing waits for the child: what it sends is taken from the socket's queue, and it is
// sent nothing but signals.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/keeper"
)

// stopTimeout is how long a child may take to end after SIGTERM before it is killed.
const stopTimeout = 30 * time.Second

// Options is what Run needs to know.
type Options struct {
	// Path and Args are what each start executes, Args from the program's name on. The program must
	// call ExecListening first, or hand over to one that does: only the new process knows its own
	// ID, which $LISTEN_PID names.
	Path string
	Args []string
	// Env is the child's environment, to which the protocol's variables are added.
	Env []string
	// Max bounds the descriptors that are held; 0: what the limit of open files allows, up to
	// 16384.
	Max int
	// Wrong is the exit status of a child that cannot do what it was told to: it is not started
	// again where nothing is held that waits for it. 0: there is none.
	Wrong int
	Log   *slog.Logger

	backoff     backoff       // for tests
	stopTimeout time.Duration // for tests; 0: stopTimeout
}

// ErrWrong is wrapped by the error of a Run whose child ended with Options.Wrong.
var ErrWrong = errors.New("what micad was told cannot be right")

// Run starts the child, and starts it again when it ends, until ctx ends: then the child is told to
// end (SIGTERM), waited for, and what is held is closed. What arrives on restart makes it do so
// with the descriptors kept. The error is about the supervisor's own means (no socket, no process),
// or wraps ErrWrong. One Run takes all children of its process.
func Run(ctx context.Context, o Options, restart <-chan os.Signal) error {
	room, err := capacity(o.Max)
	if err != nil {
		return err
	}
	sock, err := listen(newStore(room), o.Log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer sock.close()
	wg.Go(sock.serve)

	if o.stopTimeout == 0 {
		o.stopTimeout = stopTimeout
	}
	b := o.backoff
	for {
		began := time.Now()
		c, err := start(sock, o)
		if err != nil && sock.held() == 0 {
			return err // nothing is lost
		}
		if err != nil {
			delay := b.next(0, false)
			o.Log.Error("micad is not started; it is tried again", "err", err, "in", delay)
			if !pause(ctx, delay, restart) {
				return nil
			}
			continue
		}
		told := true
		select {
		case <-c.ended:
			told = false
		case <-restart:
			o.Log.Info("micad is told to make room for a new one", "pid", c.pid)
			c.stop(o.stopTimeout)
		case <-ctx.Done():
			c.stop(o.stopTimeout)
		}
		c.close()
		if ctx.Err() != nil {
			return nil
		}
		// What the child sent last counts, and nobody sends to a queue that is being emptied any
		// more.
		sock.drain()
		wrong := o.Wrong != 0 && c.status.Exited() && c.status.ExitStatus() == o.Wrong
		if wrong && sock.held() == 0 {
			return fmt.Errorf("%w: it ended with %s", ErrWrong, describe(c.status))
		}
		delay := b.next(time.Since(began), told)
		o.Log.Warn("micad has ended and is started again", "pid", c.pid,
			"state", describe(c.status), "descriptors", sock.held(), "in", delay)
		if !pause(ctx, delay, restart) {
			return nil
		}
	}
}

// pause waits, or until it is told to go on, and tells whether to.
func pause(ctx context.Context, delay time.Duration, restart <-chan os.Signal) bool {
	select {
	case <-time.After(delay):
	case <-restart:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// capacity is how many descriptors can be held: max, or less if so many files cannot be open.
// Beside them there must be room for those of one datagram and a few of our own.
func capacity(max int) (int, error) {
	const spare, most = 2 * maxRights, 16384
	if max <= 0 {
		max = most
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	if l.Cur <= spare {
		return 0, fmt.Errorf("limit of open files: %d do not suffice, raise it (ulimit -n)", l.Cur)
	}
	return int(min(uint64(max), l.Cur-spare)), nil
}

// child is a running daemon.
type child struct {
	pid, pidfd int
	ended      chan struct{}
	status     syscall.WaitStatus // once ended is closed
}

// start executes the child with the descriptors that are held.
func start(s *socket, o Options) (*child, error) {
	c := &child{ended: make(chan struct{})}
	// While the lock is held no datagram is looked at, so that the child's first is not taken for
	// somebody else's.
	s.mu.Lock()
	defer s.mu.Unlock()
	fds, names := s.store.list()
	env := append(keeper.CleanEnviron(o.Env), "NOTIFY_SOCKET="+s.addr,
		"FDSTORE="+strconv.Itoa(s.store.max))
	if len(fds) > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(fds)),
			"LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	// Not os.StartProcess: it works on os.Files, which would take part in our polling or lose
	// O_NONBLOCK.
	attr := &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{
		Setpgid: true, // a terminal's Ctrl-C is for us to pass on
		PidFD:   &c.pidfd,
	}}
	for _, fd := range fds {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	pid, err := syscall.ForkExec(o.Path, o.Args, attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Path, err)
	}
	c.pid, s.child = pid, pid
	go c.wait() // ends with the child; Run waits for ended before it does anything else
	return c, nil
}

// wait reaps the child, and orphans that became ours because we are the first process of a
// container.
func (c *child) wait() {
	defer close(c.ended)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return // no children: it was reaped behind our back, which means that it is gone
		}
		if pid == c.pid {
			c.status = status
			return
		}
	}
}

// stop tells the child to end and waits until it has; it is killed if it takes too long.
func (c *child) stop(patience time.Duration) {
	c.signal(unix.SIGTERM)
	select {
	case <-c.ended:
	case <-time.After(patience):
		c.signal(unix.SIGKILL)
		<-c.ended
	}
}

// signal reaches this very process: its number may be another's already. One that has ended needs
// no signal.
func (c *child) signal(sig unix.Signal) { _ = unix.PidfdSendSignal(c.pidfd, sig, nil, 0) }

func (c *child) close() { unix.Close(c.pidfd) }

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "signal: " + s.Signal().String()
	}
	return "exit status " + strconv.Itoa(s.ExitStatus())
}

// ExecListening makes the process the program at the first of paths that can be executed, as a
// listener in terms of sd_listen_fds(3): $LISTEN_PID names this process, which stays the same. It
// returns only with an error.
func ExecListening(paths []string, args []string) error {
	if os.Getenv("LISTEN_FDS") != "" {
		if err := os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())); err != nil {
			return fmt.Errorf("set LISTEN_PID: %w", err)
		}
	}
	var err error
	for _, path := range paths {
		err = syscall.Exec(path, args, os.Environ())
		fmt.Fprintf(os.Stderr, "micad: execute %s: %v\n", path, err)
	}
	return fmt.Errorf("nothing to execute: %w", err)
}
