package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mica-snapshotter/mica/fs/mountinfo"
)

// Type is the file system type of our mounts in /proc/self/mountinfo, and
// Source what stands there as the mounted device.
const (
	Type   = "fuse.mica"
	Source = "mica"
)

// Device is the bytes of a layer's device: its uncompressed tar.
type Device interface {
	// ReadAt fills p with the device's bytes from off on, or fails: it never
	// returns less without an error. Parallel calls are made. It ends soon
	// after ctx does.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Size is the length of the device in bytes; it does not change.
	Size() int64
}

// Filler is what a Device may be as well.
type Filler interface {
	// Fill waits until ReadAt of [off, off+n) will not have to wait. It is
	// called before a read takes its buffer, so that reads that wait for
	// the network hold no memory.
	Fill(ctx context.Context, off, n int64) error
}

// Options of a mount; the zero value is good.
type Options struct {
	Log *slog.Logger // nil: slog.Default()
	// shared with other mounts; nil: the mount has DefaultMemory for itself
	Memory    *Memory
	ReadAhead int // bytes that the kernel reads ahead; 0: DefaultReadAhead
	// requests of readahead and asynchronous reads that the kernel keeps under way; 0:
	// DefaultMaxBackground
	MaxBackground int
	// called with what the panic of a request has left, which is then answered with EIO; nil: only
	// logged
	Panicked func(v any)
}

const (
	// DefaultReadAhead lets a sequential reader ask for 1 MiB at once, where
	// the kernel's own default makes it 128 KiB.
	DefaultReadAhead = 1 << 20
	// DefaultMaxBackground is the bound on the kernel's background requests
	// of one mount.
	DefaultMaxBackground = 64
)

// Mount is a mounted file system that this process serves.
type Mount struct {
	dir   string
	id    int // of the mount, in the mount table
	conn  *conn
	done  chan struct{}
	saved Saved
}

// kind is in what the two kinds of mounts differ.
type kind struct {
	name          Kind
	flags         uintptr // of mount(2), beside MS_RDONLY
	with, without uint64  // FUSE capabilities
}

// defaults fills in what is not set.
func (o *Options) defaults() {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Memory == nil {
		o.Memory = NewMemory(0)
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = DefaultReadAhead
	}
	if o.MaxBackground == 0 {
		o.MaxBackground = DefaultMaxBackground
	}
	if o.Panicked == nil {
		log := o.Log
		o.Panicked = func(v any) {
			log.Error("panic in a FUSE request", "panic", v, "stack", string(debug.Stack()))
		}
	}
}

// conn returns the options of the connection of a mount.
func (o *Options) conn(s *Saved) connOptions {
	return connOptions{mem: o.Memory, log: o.Log.With("dir", s.Dir), panicked: o.Panicked,
		proto: &gofuse.MountOptions{
			MaxWrite: maxRead, MaxBackground: s.MaxBackground,
			// No more of the kernel's congestion control than the bound itself.
			CongestionThreshold: s.MaxBackground,
			// Contents never change under a node ID.
			ExplicitDataCacheControl: true, EnableSymlinkCaching: true,
			IDMappedMount:        true,
			Options:              []string{"default_permissions"},
			DisabledCapabilities: s.Without,
			ExtraCapabilities:    s.With,
		}}
}

// mount mounts fs at dir and serves it. The mount outlives ctx, which is only
// for its values.
func mount(ctx context.Context, dir string, fs filesystem, k kind, o Options) (*Mount, error) {
	o.defaults()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	fd, err := open(dir, k.flags)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	// Only now, when the descriptor is mounted, can it go into the poller:
	// before, the kernel has no queue to wait on and the poller would never
	// hear of a request.
	file := os.NewFile(uintptr(fd), "/dev/fuse")
	m := &Mount{dir: dir, done: make(chan struct{}), saved: Saved{
		Kind: k.name, Dir: dir, MaxBackground: o.MaxBackground,
		With: gofuse.CAP_NO_OPENDIR_SUPPORT | gofuse.CAP_READDIRPLUS_AUTO | k.with,
		// An unused PASSTHROUGH counts as a level of stacking, and breaks
		// overlay mounts inside of a container.
		Without: gofuse.CAP_PASSTHROUGH | k.without,
	}}
	var told agreement
	m.conn, told, err = newConn(context.WithoutCancel(ctx), file, fs, o.conn(&m.saved))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err),
			unix.Unmount(dir, unix.MNT_DETACH))
	}
	m.conn.serve(func() { close(m.done) })
	// The mount's numbers, without asking the mount itself.
	at, ok, err := mountinfo.RootAt(dir)
	if err == nil && !ok {
		err = fmt.Errorf("somebody else has unmounted it: %w", os.ErrNotExist)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("mount %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH),
			m.conn.close())
		m.Wait()
		return nil, err
	}
	m.id = at.ID
	m.saved.ID, m.saved.Device = at.ID, at.Device
	m.saved.Init, m.saved.Reply = told.init, told.reply
	if err := readAhead(at.Device, o.ReadAhead); err != nil {
		// Slower, and nothing else: a container's /sys may be read-only.
		o.Log.Warn("set the mount's readahead", "dir", dir, "err", err)
	}
	return m, nil
}

// open mounts a new FUSE connection at dir and returns its descriptor. We call
// mount(2) ourselves: no helper, no option that go-fuse would choose, and a
// descriptor that can be kept over the daemon's death.
func open(dir string, flags uintptr) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := strings.Join([]string{
		"fd=" + strconv.Itoa(fd), "rootmode=40000", "user_id=" +
			strconv.Itoa(os.Geteuid()), "group_id=" + strconv.Itoa(os.Getegid()),
		"default_permissions", "allow_other", "max_read=" + strconv.Itoa(maxRead),
	}, ",")
	if err := unix.Mount(Source, dir, Type, flags|unix.MS_RDONLY, data); err != nil {
		return -1, errors.Join(fmt.Errorf("mount(2): %w", err), unix.Close(fd))
	}
	return fd, nil
}

// readAhead sets what the kernel reads ahead on a mount, in bytes.
func readAhead(device string, n int) error {
	return os.WriteFile(filepath.Join("/sys/class/bdi", device, "read_ahead_kb"),
		[]byte(strconv.Itoa(n>>10)), 0)
}

// Dir is the mount point.
func (m *Mount) Dir() string { return m.dir }

// Done is closed when the mount is gone and all that served it has returned.
func (m *Mount) Done() <-chan struct{} { return m.done }

// Wait waits for that.
func (m *Mount) Wait() { <-m.done }

// ErrCovered means that another mount lies on the one that is to be unmounted.
var ErrCovered = errors.New("another mount lies on it")

// Unmount takes the mount out of the file tree and returns when it is gone. If
// it is in use, it only leaves the tree: those who have it open keep
// it and it ends with the last of them; Unmount then returns nil at
// once, and Wait tells when. It is no error if somebody else unmounted it;
// ErrCovered: something is mounted over it, and nothing was done.
func (m *Mount) Unmount() error {
	// Who closed a file a moment ago may still count as a user of it.
	for delay := time.Millisecond; ; delay *= 2 {
		there, err := m.uppermost()
		if err != nil || !there {
			return err
		}
		flags := unix.UMOUNT_NOFOLLOW
		if delay > 16*time.Millisecond {
			flags |= unix.MNT_DETACH
		}
		err = unix.Unmount(m.dir, flags)
		switch {
		case err == nil && flags&unix.MNT_DETACH == 0:
			m.Wait()
			return nil
		case err == nil:
			return nil
		case !errors.Is(err, unix.EBUSY) || flags&unix.MNT_DETACH != 0:
			return fmt.Errorf("unmount %s: %w", m.dir, err)
		}
		time.Sleep(delay)
	}
}

// uppermost says whether the mount is at its mount point still, with nothing on
// top of it.
func (m *Mount) uppermost() (bool, error) {
	if id, err := mountinfo.ID(m.dir); err == nil && id == m.id {
		return true, nil // without the mount table, which has all mounts of the machine
	}
	mounts, err := mountinfo.At(m.dir)
	if err != nil {
		return false, fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	for i, at := range mounts {
		if at.ID == m.id && i < len(mounts)-1 {
			return false, fmt.Errorf("unmount %s: %w: %s of type %s", m.dir, ErrCovered,
				mounts[i+1].Source, mounts[i+1].Type)
		}
		if at.ID == m.id {
			return true, nil
		}
	}
	return false, nil
}

// Close stops serving, at once: requests under way fail, and so do later ones
// of those who still use the mount. It does not unmount.
func (m *Mount) Close() error {
	err := m.conn.close()
	m.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Stats returns the mount's counters.
func (m *Mount) Stats() Stats { return m.conn.stats.snapshot() }

// Detach takes what a former daemon left mounted at dir out of the file tree,
// dead (ENOTCONN) or alive: all mounts of ours that lie uppermost there. It
// is no error if there is none.
func Detach(dir string) error {
	for {
		m, ok, err := mountinfo.Top(dir)
		if err != nil {
			return fmt.Errorf("detach %s: %w", dir, err)
		}
		if !ok || m.Type != Type {
			return nil
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("detach %s: %w", dir, err)
		}
	}
}
