package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// exchange lets send send messages, then waits until the keeper has seen them all. It ends with
// ctx.
func (k *Keeper) exchange(ctx context.Context, send func(*net.UnixConn) error) error {
	c, err := k.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = send(c)
	if err == nil {
		err = barrier(ctx, c)
	}
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// tell sends messages and waits for no answer.
func (k *Keeper) tell(states ...string) error {
	if k == nil {
		return nil
	}
	c, err := k.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("notify the keeper: %w", err)
	}
	for _, state := range states {
		if err := send(c, state); err != nil {
			return err
		}
	}
	return nil
}

// dial connects for one call: a connection kept longer would not survive a new socket at the same
// path.
func (k *Keeper) dial() (*net.UnixConn, error) {
	c, err := net.DialUnix("unixgram", nil, k.addr)
	if err != nil {
		return nil, fmt.Errorf("notify the keeper: %w", err)
	}
	return c, nil
}

// send sends one datagram: state, and descriptors of files.
func send(c *net.UnixConn, state string, files ...*os.File) error {
	fds := make([]int, len(files))
	return withFDs(files, fds, func() error {
		var rights []byte
		if len(fds) > 0 {
			rights = syscall.UnixRights(fds...)
		}
		if err := sendmsg(c, []byte(state), rights); err != nil {
			return fmt.Errorf("notify the keeper: %w", err)
		}
		return nil
	})
}

// sendmsg is what c.WriteMsgUnix would be if it did not refuse connected datagram sockets.
// Connected the socket is because only then the kernel tells when a full queue has room again.
func sendmsg(c *net.UnixConn, p, oob []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Write(func(fd uintptr) bool {
		for {
			inner = syscall.Sendmsg(int(fd), p, oob, nil, syscall.MSG_NOSIGNAL)
			if !errors.Is(inner, syscall.EINTR) {
				return !errors.Is(inner, syscall.EAGAIN)
			}
		}
	})
	if err != nil {
		return err
	}
	return inner
}

// withFDs runs do while the files' descriptors lie in fds and stay open. Unlike with [os.File.Fd],
// the open files stay non-blocking if they are: the keeper's duplicates share that flag.
func withFDs(files []*os.File, fds []int, do func() error) error {
	if len(files) == 0 {
		return do()
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", files[0].Name(), err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		fds[0] = int(fd)
		inner = withFDs(files[1:], fds[1:], do)
	})
	if err != nil {
		return fmt.Errorf("descriptor of %s: %w", files[0].Name(), err)
	}
	return inner
}

// barrier waits until the keeper has handled all that was sent before: it closes the descriptor
// that goes with BARRIER=1 when it reaches it, and we see the end of the pipe.
// sd_notify_barrier(3).
func barrier(ctx context.Context, c *net.UnixConn) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	defer r.Close()
	err = send(c, "BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the keeper: %w", err)
	}
	return nil
}
