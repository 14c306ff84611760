package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxMessage = 4096 // systemd takes no more either
	maxRights  = 253  // descriptors in one datagram: SCM_MAX_FD, net/scm.h
	// maxDrain bounds what is read of a dead child: the queue of a socket is
	// net.unix.max_dgram_qlen long.
	maxDrain = 1 << 12
	// complainEvery bounds the lines about datagrams that are ignored.
	complainEvery = 10 * time.Second
)

// socket is where notifications arrive.
type socket struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	path int    // descriptor by which others connect
	addr string // for NOTIFY_SOCKET
	log  *slog.Logger

	mu         sync.Mutex
	store      *store
	child      int // the only process that is listened to
	ignored    int // datagrams since complained
	complained time.Time
}

// listen makes the socket. It has no name in the file system, where other users and containers
// could find it and where a killed supervisor would leave it: children connect through the
// descriptor of this process, /proc/PID/fd/N, which takes the right to trace it.
func listen(st *store, log *slog.Logger) (*socket, error) {
	dir, err := os.MkdirTemp("/run", "micad-keep-")
	if err != nil {
		dir, err = os.MkdirTemp("", "micad-keep-")
	}
	if err != nil {
		return nil, fmt.Errorf("folder of the notification socket: %w", err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notification socket: %w", err)
	}
	s := &socket{conn: conn, log: log, store: st}
	if err := s.prepare(name); err != nil {
		conn.Close()
		return nil, fmt.Errorf("notification socket: %w", err)
	}
	return s, nil
}

func (s *socket) prepare(name string) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); err != nil {
		return err
	}
	if inner != nil {
		return inner
	}
	s.raw = raw
	s.path, err = unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	s.addr = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.path)
	return nil
}

// close ends serve and closes all that is held.
func (s *socket) close() {
	s.conn.Close()
	unix.Close(s.path)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store.clear()
}

// held is how many descriptors there are.
func (s *socket) held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.store.entries)
}

// serve handles datagrams until close.
func (s *socket) serve() {
	_ = s.raw.Read(func(fd uintptr) bool {
		for s.receive(int(fd)) {
		}
		return false // wait for more; only close ends this
	})
}

// drain handles what lies in the queue.
func (s *socket) drain() {
	_ = s.raw.Control(func(fd uintptr) {
		for range maxDrain {
			if !s.receive(int(fd)) {
				return
			}
		}
	})
}

// receive handles a datagram if there is one. The first look at it takes its sender, not its
// descriptors: those of strangers never become ours, not even to be closed, which may block.
func (s *socket) receive(fd int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var buf [maxMessage]byte
	creds := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	_, oobn, _, _, err := recvmsg(fd, nil, creds, unix.MSG_PEEK)
	if err != nil {
		return false // EAGAIN, or closed
	}
	pid := sender(creds[:oobn])
	if pid != s.child || pid == 0 {
		if _, _, _, _, err := recvmsg(fd, nil, nil, 0); err != nil {
			return false
		}
		s.ignoreLocked(fmt.Errorf("process %d is not micad", pid))
		return true
	}
	oob := make([]byte, len(creds)+unix.CmsgSpace(4*maxRights))
	n, oobn, flags, _, err := recvmsg(fd, buf[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return false
	}
	fds := rights(oob[:oobn])
	if err := s.handleLocked(buf[:n], flags, fds); err != nil {
		s.ignoreLocked(err)
	}
	return true
}

// handleLocked does what a message of the child asks for, and takes or closes fds.
func (s *socket) handleLocked(msg []byte, flags int, fds []int) error {
	n, err := parseNotification(msg)
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("it is too large")
	}
	if err != nil || !n.store {
		for _, fd := range fds { // closing a barrier's is the answer to it
			unix.Close(fd)
		}
	}
	switch {
	case err != nil:
		return err
	case n.store:
		for _, fd := range fds {
			if !s.store.add(n.name, fd) {
				err = fmt.Errorf("%d descriptors are held, and no more can be", s.store.max)
			}
		}
		return err
	case n.remove:
		s.store.remove(n.name)
	case n.ready:
		s.log.Info("micad is ready", "pid", s.child, "status", n.status)
	}
	return nil
}

// ignoreLocked tells about a datagram that is not obeyed, but not about every one.
func (s *socket) ignoreLocked(why error) {
	s.ignored++
	if time.Since(s.complained) < complainEvery {
		return
	}
	s.log.Warn("notification ignored", "err", why, "count", s.ignored)
	s.ignored, s.complained = 0, time.Now()
}

// recvmsg receives without waiting.
func recvmsg(
	fd int, p, oob []byte, flags int,
) (n, oobn, recvflags int, from unix.Sockaddr, err error) {
	for {
		n, oobn, recvflags, from, err = unix.Recvmsg(fd, p, oob, flags|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return n, oobn, recvflags, from, err
		}
	}
}

// sender is the process that the kernel says sent the message; 0 if it cannot be seen from here.
func sender(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for i := range msgs {
		if c, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			return int(c.Pid)
		}
	}
	return 0
}

// rights is the descriptors that came with a message.
func rights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var all []int
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}
