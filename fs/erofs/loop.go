package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// loop is a loop device over a file. The kernel clears it when its last user is
// gone: close while it is mounted leaves it to the mount.
type loop struct {
	path string
	file *os.File
}

// loopTries is how often a free loop device may be taken by somebody else
// between our asking for one and our taking it.
const loopTries = 64

// openLoop attaches a file to a free loop device, read-only.
func openLoop(path string) (*loop, error) {
	l, err := attach(path)
	if err != nil {
		return nil, fmt.Errorf("loop device for %s: %w", path, err)
	}
	return l, nil
}

func attach(path string) (l *loop, err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	// Not os.Open: it would enter the file into the runtime's poller, and a
	// file on our own FUSE mount would be asked about that while the
	// runtime holds what its answer needs.
	file, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(file)) }()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		l := &loop{path: "/dev/loop" + strconv.Itoa(n)}
		if l.file, err = os.Open(l.path); err != nil {
			return nil, err
		}
		err = l.configure(file, path)
		if err == nil {
			return l, nil
		}
		err = errors.Join(err, l.file.Close())
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("no device stays free: %w", unix.EBUSY)
}

// configure attaches file to the device: with direct I/O, which spares a second
// copy of its pages, where the file's file system has it.
func (l *loop) configure(file int, path string) error {
	cfg := unix.LoopConfig{Fd: uint32(file)}
	cfg.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], path)
	err := unix.IoctlLoopConfigure(int(l.file.Fd()), &cfg)
	if errors.Is(err, unix.EINVAL) {
		cfg.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(l.file.Fd()), &cfg)
	}
	if err != nil {
		return fmt.Errorf("LOOP_CONFIGURE %s: %w", l.path, err)
	}
	return nil
}

// readAhead sets what the kernel reads ahead on the device, in bytes.
func (l *loop) readAhead(n int) error {
	return writeReadAhead(filepath.Join("/sys/block", filepath.Base(l.path), "queue"), n)
}

func (l *loop) close() error { return l.file.Close() }
