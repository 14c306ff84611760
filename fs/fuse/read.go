package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// call is a read under way. Its context ends with the connection, or when its caller is killed.
type call struct {
	unique, node uint64
	thread       uint32 // its caller; 0: not one of this PID namespace, or the kernel itself
	off          int64
	size         int64
	ctx          context.Context
	cancel       context.CancelFunc
}

// begin enters a read among those under way, so that it can be interrupted.
// The context is a child of the connection's, which costs no goroutine.
func (c *conn) begin(in *gofuse.ReadIn) *call {
	r := &call{
		unique: in.Unique, node: in.NodeId, thread: in.Pid,
		off: int64(in.Offset), size: int64(in.Size),
	}
	r.ctx, r.cancel = context.WithCancel(c.life)
	c.mu.Lock()
	c.reads[r.unique] = r
	c.mu.Unlock()
	return r
}

// interrupt hears that the caller of a read has got a signal. The kernel says so once, and waits
// for the answer to the read all the same; it wants none to an INTERRUPT.
//
// The read ends if the signal kills the caller, then or later, and goes on otherwise: as on a disk.
// The error of an interrupted page fault would reach a program as SIGBUS, or as EFAULT from a
// system call that touches a mapped file; where it only makes the kernel try again, a program with
// a timer would never get its page.
func (c *conn) interrupt(unique uint64) {
	c.mu.Lock()
	r := c.reads[unique]
	c.mu.Unlock()
	if r == nil {
		return
	}
	c.loops.Go(func() {
		defer r.cancel()
		for wait := killedSoon; !killed(r.thread); wait = min(2*wait, killedLate) {
			select {
			case <-time.After(wait):
			case <-r.ctx.Done():
				return
			}
		}
	})
}

// The caller of a read that a signal has met is looked at again after killedSoon, and then after
// twice as long each time, killedLate at the most.
const (
	killedSoon = 50 * time.Millisecond
	killedLate = time.Second
)

// killed says whether a thread is about to end. The kernel marks all threads of a process that any
// signal or exit ends by a pending SIGKILL. A thread that cannot be looked at counts as killed.
func killed(thread uint32) bool {
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(thread), 10) + "/status")
	_, rest, found := bytes.Cut(b, []byte("\nSigPnd:\t"))
	pending, _, _ := bytes.Cut(rest, []byte("\n"))
	set, perr := strconv.ParseUint(string(pending), 16, 64)
	return err != nil || !found || perr != nil || set&(1<<(unix.SIGKILL-1)) != 0
}

// read answers a READ: whole, or with an error. A short answer would be taken
// for the end of the file.
func (c *conn) read(r *call) {
	c.stats.request(opRead)
	buf, err := c.fetch(r)
	if buf != nil {
		defer c.mem.release(buf)
	}
	c.mu.Lock()
	delete(c.reads, r.unique)
	c.mu.Unlock()
	defer r.cancel()

	var data []byte
	switch {
	case err != nil:
		if !errors.Is(err, errInterrupted) {
			c.stats.errors.Add(1)
		}
	case buf != nil:
		data = buf.bytes()
	}
	if err := c.reply(r.unique, errno(err), data); err != nil {
		c.stats.errors.Add(1)
		// The kernel did not take the reply, and the caller would wait for
		// ever.
		if err := c.fail(r.unique, gofuse.EIO); err != nil {
			c.log.Error("answer FUSE read", "err", err)
		}
	}
}

// fetch returns the bytes that a read asks for, in a buffer that the caller
// gives back; nil without an error: the read lies beyond the end of the file.
func (c *conn) fetch(r *call) (buf *buffer, err error) {
	defer func() {
		if v := recover(); v != nil {
			c.panicked(v)
			if buf != nil {
				// Something of what fell over may still write to it.
				buf.data = make([]byte, len(buf.data))
			}
			err = fmt.Errorf("read node %d at %d: panic: %v", r.node, r.off, v)
		}
	}()
	f, err := c.fs.file(r.node)
	if err != nil {
		return nil, fmt.Errorf("read node %d: %w", r.node, err)
	}
	n := min(r.size, f.size()-r.off)
	if r.off < 0 || n <= 0 {
		return nil, nil
	}
	err = f.fill(r.ctx, r.off, n)
	if err == nil {
		buf, err = c.mem.acquire(r.ctx, int(n))
	}
	if err == nil {
		err = f.readAt(r.ctx, buf.bytes(), r.off)
	}
	if err != nil {
		return buf, fmt.Errorf("read node %d, %d bytes at %d: %w", r.node, n, r.off,
			interrupted(r.ctx, err))
	}
	return buf, nil
}
