package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mica-snapshotter/mica/index"
)

// A mount outlives the process that serves it where somebody holds its descriptor: callers wait,
// instead of getting ENOTCONN, until the next process adopts the mount. It needs what Saved says,
// and the same layer:
//
//	Mount.Saved, Mount.Descriptor ──▶ keeper ──▶ AdoptDevice, AdoptTree
//
// Nothing else has to be remembered. Node IDs are those of the index, there are no file handles,
// and the kernel's own state of a connection (what it knows not to ask any more) stays true.

// Kind is what a mount shows.
type Kind string

// The kinds.
const (
	KindDevice Kind = "device" // see MountDevice
	KindTree   Kind = "tree"   // see MountTree
)

// Saved is what a process needs to know of a mount, beside its descriptor, to take it over. It is
// JSON.
type Saved struct {
	Kind Kind   `json:"kind"`
	Dir  string `json:"dir"` // the mount point
	ID   int    `json:"id"`  // of the mount, in the mount table
	// "major:minor" of the file system, its own as long as the connection lives
	Device string `json:"device"`

	Init          []byte `json:"init"`          // the kernel's INIT request
	Reply         []byte `json:"reply"`         // what it was answered
	MaxBackground int    `json:"maxBackground"` // see Options
	// FUSE capabilities wanted beyond go-fuse's own choice
	With    uint64 `json:"with"`
	Without uint64 `json:"without"` // and those refused
}

// Saved returns what another process needs to adopt the mount. ok is false where that is
// impossible: a kernel that does not hand out anew what a dead process has left unanswered (before
// Linux 6.9) would have its callers wait for ever.
func (m *Mount) Saved() (s Saved, ok bool) {
	in, ok := body[gofuse.InitIn](m.saved.Init)
	return m.saved, ok && in.Flags64()&gofuse.CAP_HAS_RESEND != 0
}

// Descriptor returns a duplicate of the mount's /dev/fuse. As long as it is open, somewhere, the
// connection lives.
func (m *Mount) Descriptor() (*os.File, error) {
	f, err := Duplicate(m.conn.file)
	if err != nil {
		return nil, fmt.Errorf("descriptor of %s: %w", m.dir, err)
	}
	return f, nil
}

// Duplicate returns another descriptor of a /dev/fuse, the same connection.
func Duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// Alive says whether a connection has a mount still, somewhere: in the file tree or out of it, but
// in use.
func Alive(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, err := unix.Poll(p, 0)
		alive = err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
	})
	return err == nil && alive
}

// AdoptDevice serves a mount that another process has made by MountDevice and no longer serves. dev
// is the same layer's. file is closed with the mount, or after an error. Of o, what the kernel was
// told long ago does not count.
func AdoptDevice(
	ctx context.Context, file *os.File, s Saved, dev Device, o Options,
) (*Mount, error) {
	return adopt(ctx, file, s, KindDevice, newDeviceFS(dev), o)
}

// AdoptTree serves a mount that another process has made by MountTree and no longer serves, of an
// equal index. The rest is as with AdoptDevice.
func AdoptTree(
	ctx context.Context, file *os.File, s Saved, layer *index.Layer, dev Device, o Options,
) (*Mount, error) {
	t, err := newTreeFS(layer, dev)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("adopt %s: %w", s.Dir, err), file.Close())
	}
	return adopt(ctx, file, s, KindTree, t, o)
}

// AdoptLost serves a mount whose layer is not to be had: all that is asked of it fails, with EIO,
// and nothing of that is remembered. Mount.Leave gives it back for an adoption with the layer.
func AdoptLost(ctx context.Context, file *os.File, s Saved, o Options) (*Mount, error) {
	return adopt(ctx, file, s, s.Kind, lostFS{gofuse.NewDefaultRawFileSystem()}, o)
}

func adopt(
	ctx context.Context, file *os.File, s Saved, k Kind, fs filesystem, o Options,
) (*Mount, error) {
	if s.Kind != k {
		return nil, errors.Join(fmt.Errorf("adopt %s: it is a %q, not a %q", s.Dir, s.Kind, k),
			file.Close())
	}
	o.defaults()
	m := &Mount{dir: s.Dir, id: s.ID, done: make(chan struct{}), saved: s}
	var err error
	m.conn, err = adoptConn(context.WithoutCancel(ctx), file, fs,
		agreement{init: s.Init, reply: s.Reply}, o.conn(&s))
	if err != nil {
		return nil, fmt.Errorf("adopt %s: %w", s.Dir, err)
	}
	m.conn.serve(func() { close(m.done) })
	return m, nil
}

// Leave stops serving, at once, and leaves the mount and all that is asked of it to whoever holds
// its descriptor: callers wait for the next one to adopt it. Where nobody holds it, Leave is Close.
func (m *Mount) Leave() error {
	err := m.conn.leave()
	m.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
