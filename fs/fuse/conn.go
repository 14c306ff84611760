package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// conn is one FUSE connection: it takes requests from /dev/fuse and sends the
// replies.
//
// Metadata requests go through go-fuse, which calls the tree's methods; they
// never wait. Reads, the only requests that may wait, are answered by the connection
// itself (read.go): it bounds their memory before it allocates
// anything, and cancels them when their caller is killed.
//
// The descriptor is non-blocking and in the runtime's poller: an idle
// connection is a few parked goroutines with 8 KiB each, no thread. Of the
// goroutines in loop, one at a time reads the device; once it has a request it
// makes sure that another one takes its place, and handles the request
// itself.
type conn struct {
	file  *os.File
	raw   syscall.RawConn
	proto *gofuse.ProtocolServer
	fs    filesystem
	mem   *Memory
	log   *slog.Logger
	tell  func(v any) // of a panic
	stats counters

	// life ends with the connection, and with it all reads.
	life context.Context
	end  context.CancelFunc
	left atomic.Bool // somebody else serves from now on: no reply is sent any more

	loops sync.WaitGroup
	idle  atomic.Int32 // goroutines of loop that wait for a request

	mu    sync.Mutex
	reads map[uint64]*call // reads under way, by the request's unique ID
}

// filesystem is what a connection serves: metadata by go-fuse's interface, and
// files by node ID.
type filesystem interface {
	gofuse.RawFileSystem
	// file returns the content of a regular file.
	file(node uint64) (file, error)
}

// file is the content of a file. The ranges that it is asked for lie within its
// size.
type file interface {
	size() int64 // bytes
	// fill waits until [off, off+n) can be read without waiting, as far as
	// the device can tell.
	fill(ctx context.Context, off, n int64) error
	// readAt fills p from off on, or fails.
	readAt(ctx context.Context, p []byte, off int64) error
}

// maxIdle is how many goroutines of a connection are kept to wait for requests.
const maxIdle = 2

// newConn takes over file, a /dev/fuse that is mounted and whose INIT request has not been read
// yet, and answers that request. What the kernel and the connection have agreed upon is returned
// for those who take it over later.
func newConn(
	life context.Context, file *os.File, fs filesystem, o connOptions,
) (*conn, agreement, error) {
	c, err := openConn(life, file, fs, o)
	if err != nil {
		return nil, agreement{}, err
	}
	a, err := c.init()
	if err != nil {
		c.end()
		return nil, agreement{}, errors.Join(err, file.Close())
	}
	return c, a, nil
}

// adoptConn takes over file, a /dev/fuse that another process has served before by agreement a.
// Requests that it had read and not answered come once more. The kernel hears of the change in no
// other way.
func adoptConn(
	life context.Context, file *os.File, fs filesystem, a agreement, o connOptions,
) (*conn, error) {
	c, err := openConn(life, file, fs, o)
	if err != nil {
		return nil, err
	}
	if err := c.adopt(a); err != nil {
		c.end()
		return nil, errors.Join(err, file.Close())
	}
	return c, nil
}

// connOptions are what a connection shares with others, and go-fuse's options.
type connOptions struct {
	mem      *Memory
	log      *slog.Logger
	panicked func(v any)
	proto    *gofuse.MountOptions
}

// agreement is what passed between the kernel and the first who served a connection.
type agreement struct {
	init  []byte // the kernel's INIT request
	reply []byte // and the answer to it
}

// openConn makes a connection that neither reads nor sends yet. file is closed after an error.
func openConn(life context.Context, file *os.File, fs filesystem, o connOptions) (*conn, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("use /dev/fuse: %w", err), file.Close())
	}
	c := &conn{file: file, raw: raw, fs: fs, mem: o.mem, log: o.log, tell: o.panicked,
		reads: make(map[uint64]*call)}
	c.life, c.end = context.WithCancel(life)
	opts := *o.proto
	opts.PanicHandler = c.panicked
	opts.Logger = slog.NewLogLogger(o.log.Handler(), slog.LevelDebug)
	c.proto = gofuse.NewProtocolServer(fs, &opts)
	return c, nil
}

// init answers the kernel's INIT.
func (c *conn) init() (agreement, error) {
	buf := make([]byte, requestSize)
	n, _, err := c.next(buf)
	if err != nil {
		return agreement{}, fmt.Errorf("read INIT: %w", err)
	}
	c.stats.request(opInit)
	reply, err := c.answerInit(buf[:n])
	if err != nil {
		return agreement{}, err
	}
	return agreement{init: bytes.Clone(buf[:n]), reply: reply}, c.send(reply, nil)
}

// adopt makes go-fuse believe that it has just answered INIT, and asks the kernel for what the
// former server left unanswered.
func (c *conn) adopt(a agreement) error {
	reply, err := c.answerInit(bytes.Clone(a.init))
	if err != nil {
		return fmt.Errorf("saved %w", err)
	}
	if !bytes.Equal(reply, a.reply) {
		c.log.Warn("a FUSE connection was begun otherwise than this version would",
			"told", fmt.Sprintf("%x", a.reply), "would", fmt.Sprintf("%x", reply))
	}
	// Before the first read: what is read before it would come twice.
	return c.send(asBytes(&gofuse.OutHeader{Length: uint32(outHeaderSize), Status: notifyResend}),
		nil)
}

// answerInit has go-fuse answer an INIT request.
func (c *conn) answerInit(req []byte) ([]byte, error) {
	h, err := header(req)
	if err != nil {
		return nil, fmt.Errorf("INIT: %w", err)
	}
	if h.Opcode != opInit {
		return nil, fmt.Errorf("INIT: opcode %d came first", h.Opcode)
	}
	out := make([]byte, replySize)
	k, status := c.proto.HandleRequest([][]byte{req}, [][]byte{out})
	if !status.Ok() {
		return nil, fmt.Errorf("INIT: %w", syscall.Errno(status))
	}
	return out[:k], patchInit(out[:k])
}

// serve starts answering requests. The connection ends when the kernel says so
// (the last user of the mount is gone) or by close; then done is called,
// after everything that serve started has returned.
func (c *conn) serve(done func()) {
	c.idle.Store(1)
	c.loops.Add(1)
	go c.loop()
	go func() {
		c.loops.Wait()
		c.end()
		_ = c.file.Close() // already closed, if by close
		done()
	}()
}

// close ends the connection from our side: requests under way are cancelled,
// and where nobody else holds the descriptor, callers get ENOTCONN.
func (c *conn) close() error {
	c.end()
	return c.file.Close()
}

// leave ends our part in the connection, for somebody else who holds the descriptor: requests under
// way are cancelled and stay unanswered.
func (c *conn) leave() error {
	c.left.Store(true)
	return c.close()
}

func (c *conn) loop() {
	defer c.loops.Done()
	buf := make([]byte, requestSize)
	for {
		n, rd, err := c.next(buf)
		if err != nil {
			c.end()
			if !errors.Is(err, unix.ENODEV) {
				c.log.Error("FUSE connection ended", "err", err)
			}
			return
		}
		if c.idle.Add(-1) == 0 {
			c.idle.Add(1)
			c.loops.Add(1)
			go c.loop()
		}
		if rd != nil {
			c.read(rd)
		} else {
			c.handle(buf[:n])
		}
		if c.idle.Add(1) > maxIdle {
			c.idle.Add(-1)
			return
		}
	}
}

// next waits for a request and reads it into buf. A READ is entered among the
// reads under way and returned as rd. An INTERRUPT is dealt with here.
func (c *conn) next(buf []byte) (n int, rd *call, err error) {
	rerr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), buf)
			switch {
			case err == unix.EAGAIN:
				return false
			// ENOENT: the request was withdrawn while it was read
			case err == unix.EINTR, err == unix.ENOENT:
				continue
			case err != nil:
				return true
			}
			// One goroutine at a time is in here. So a READ is in the table
			// before its INTERRUPT can be read, and an INTERRUPT that finds
			// nothing there comes after the reply and means nothing.
			var consumed bool
			if rd, consumed = c.admit(buf[:n]); consumed {
				continue
			}
			return true
		}
	})
	if rerr != nil {
		// Closed by us; or ended by the kernel, which the poller reports as a
		// descriptor that cannot be polled.
		return 0, nil, unix.ENODEV
	}
	return n, rd, err
}

// admit looks at a request that was just read. consumed: nothing else is to be
// done for it.
func (c *conn) admit(req []byte) (rd *call, consumed bool) {
	h, err := header(req)
	if err != nil {
		return nil, false
	}
	switch h.Opcode {
	case opRead:
		in, ok := body[gofuse.ReadIn](req)
		if !ok {
			return nil, false
		}
		return c.begin(in), false
	case opInterrupt:
		c.stats.request(opInterrupt)
		if in, ok := body[gofuse.InterruptIn](req); ok {
			c.interrupt(in.Unique)
		}
		return nil, true
	case opForget, opBatchForget:
		// Node IDs are positions in the index: there is nothing to forget,
		// and the kernel expects no reply.
		c.stats.request(h.Opcode)
		return nil, true
	}
	return nil, false
}

// handle answers a request other than READ, through go-fuse.
func (c *conn) handle(req []byte) {
	h, err := header(req)
	if err != nil {
		c.log.Error("FUSE request", "err", err)
		return
	}
	c.stats.request(h.Opcode)
	defer func() {
		// go-fuse catches what its handlers drop; this is for itself and us.
		if v := recover(); v != nil {
			c.panicked(v)
			if err := c.fail(h.Unique, gofuse.EIO); err != nil {
				c.log.Error("answer FUSE request", "opcode", h.Opcode, "err", err)
			}
		}
	}()
	size := replySize
	if n := payload(req, h.Opcode); n > replySize-1024 {
		size = min(n, maxRead) + 1024
	}
	out := c.mem.reply(size)
	defer c.mem.releaseReply(out)
	n, status := c.proto.HandleRequest([][]byte{req}, [][]byte{*out})
	if !status.Ok() {
		// Only a request that go-fuse cannot make sense of. Its caller waits.
		if err := c.fail(h.Unique, gofuse.EIO); err != nil {
			c.log.Error("answer FUSE request", "opcode", h.Opcode, "err", err)
		}
		return
	}
	if n == 0 {
		return
	}
	if replyStatus(*out) == -int32(gofuse.EIO) {
		c.stats.errors.Add(1)
	}
	if err := c.send((*out)[:n], nil); err != nil {
		c.log.Error("answer FUSE request", "opcode", h.Opcode, "err", err)
	}
}

// fail answers a request with an error.
func (c *conn) fail(unique uint64, s gofuse.Status) error {
	return c.reply(unique, s, nil)
}

// reply answers a request with a status, or with data if that is OK.
func (c *conn) reply(unique uint64, s gofuse.Status, data []byte) error {
	h := gofuse.OutHeader{Unique: unique, Status: -int32(s),
		Length: uint32(outHeaderSize + len(data))}
	return c.send(asBytes(&h), data)
}

// send writes one reply: the kernel takes it in a single write. It is no error
// if there is nobody left to tell: the connection is gone, or the kernel no longer
// waits for this reply.
func (c *conn) send(head, data []byte) error {
	if c.left.Load() {
		return nil
	}
	var err error
	closed := c.raw.Control(func(fd uintptr) { err = write(int(fd), head, data) })
	if closed != nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("write to /dev/fuse: %w", err)
	}
	return nil
}

func write(fd int, head, data []byte) error {
	for {
		var err error
		if len(data) == 0 {
			_, err = unix.Write(fd, head)
		} else {
			_, err = unix.Writev(fd, [][]byte{head, data})
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// panicked is called with what a handler's panic left.
func (c *conn) panicked(v any) gofuse.Status {
	c.stats.errors.Add(1)
	c.tell(v)
	return gofuse.EIO
}
