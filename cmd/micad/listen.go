package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/keeper"
)

// firstByteTimeout is how long a new connection may stay silent before it is known whether it
// speaks gRPC or HTTP/1.
const firstByteTimeout = 10 * time.Second

// listen binds the UNIX socket at path, for root alone. A socket that a dead
// daemon left is replaced; one that answers is an error.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make the socket's folder: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("another micad answers at %s: stop it, or give this one another "+
			"--address and --root", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	// The umask is the process's: nothing else makes files this early.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// Names under which the keeper has micad's sockets.
const (
	listenerName = "listener"
	builderName  = "buildkit"
)

// takeListener returns the socket that a former micad has left with the keeper under a name, or a
// new one: then the keeper gets it. So containerd can connect at all times, and waits while no
// micad is there. Where there is no path, there is no listener.
func takeListener(
	ctx context.Context, k *keeper.Keeper, held *keeper.Held, name, path string,
) (net.Listener, error) {
	if held != nil {
		l, err := heldListener(held, path)
		if err == nil {
			return l, nil
		}
		if err := k.Drop(ctx, name); err != nil {
			return nil, err
		}
	}
	if path == "" {
		return nil, nil
	}
	l, err := listen(path)
	if err != nil || !k.Keeps() {
		return l, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return l, nil
	}
	f, err := u.File()
	if err == nil {
		// The file of the socket stays where it is for as long as the keeper may have the socket.
		u.SetUnlinkOnClose(false)
		err = errors.Join(k.Store(ctx, name, f), f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep the socket: %w", err), l.Close())
	}
	return l, nil
}

// heldListener returns a listener of a former process, if it is the one that answers at path. It
// closes held.
func heldListener(held *keeper.Held, path string) (_ net.Listener, err error) {
	var errs []error
	defer func() {
		for _, f := range held.Files {
			errs = append(errs, f.Close())
		}
		err = errors.Join(append(errs, err)...)
	}()
	if len(held.Files) != 1 {
		return nil, fmt.Errorf("%d sockets", len(held.Files))
	}
	l, err := net.FileListener(held.Files[0])
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok || l.Addr().String() != path {
		return nil, errors.Join(fmt.Errorf("it listens at %s", l.Addr()), l.Close())
	}
	// Something else may lie at its path by now, or nothing.
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	defer c.Close()
	there, err := peer(c.(*net.UnixConn))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	ours, err := peer(u)
	if err != nil || there != ours {
		return nil, errors.Join(err, fmt.Errorf("process %d listens at %s", there, path), l.Close())
	}
	return l, nil
}

// peer returns the process that called listen(2): of a connection's other side, or of a listener.
func peer(c syscall.Conn) (pid int32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	return cred.Pid, nil
}

// splitter gives each connection of one listener to the gRPC or the HTTP side,
// by its first two bytes: HTTP/2's preface begins with "PRI", and no method
// of HTTP/1 with "PR" that this API has.
type splitter struct {
	l          net.Listener
	grpc, http *side
}

func newSplitter(l net.Listener) *splitter {
	return &splitter{l: l, grpc: newSide(l.Addr()), http: newSide(l.Addr())}
}

// Run accepts until ctx ends, then closes the listener and both sides.
func (s *splitter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.grpc.Close()
	defer s.http.Close()
	stop := context.AfterFunc(ctx, func() { s.l.Close() })
	defer stop()
	for {
		c, err := s.l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", s.l.Addr(), err)
		}
		wg.Go(func() { s.route(c) })
	}
}

func (s *splitter) route(c net.Conn) {
	r := bufio.NewReaderSize(c, 16)
	if err := c.SetReadDeadline(time.Now().Add(firstByteTimeout)); err != nil {
		c.Close()
		return
	}
	first, err := r.Peek(2)
	if err != nil {
		c.Close()
		return
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		c.Close()
		return
	}
	to := s.http
	if string(first) == "PR" {
		to = s.grpc
	}
	to.give(&peekedConn{Conn: c, r: r})
}

// peekedConn is a connection whose first bytes wait in r.
type peekedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *peekedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// side is the listener of one protocol.
type side struct {
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newSide(addr net.Addr) *side {
	return &side{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (s *side) give(c net.Conn) {
	select {
	case s.conns <- c:
	case <-s.closed:
		c.Close()
	}
}

func (s *side) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *side) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *side) Addr() net.Addr { return s.addr }
