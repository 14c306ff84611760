package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Disk is a disk of its own, in a file: ext4 on a loop device. It can lose
// what had not reached it, be full, and have parts that cannot be read.
type Disk struct {
	Dir  string // where it is mounted
	loop string // path of the loop device
	size int64  // bytes
}

// NewDisk makes a disk of size bytes in the file image and mounts it at dir,
// which is made.
func NewDisk(ctx context.Context, image, dir string, size int64) (*Disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	// what describes the filesystem lies before all else, so that Limit reaches files only
	options := "packed_meta_blocks=1,lazy_itable_init=1,lazy_journal_init=1,nodiscard"
	if _, err := Command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", "-E", options, image); err != nil {
		return nil, err
	}
	out, err := Command(ctx, "losetup", "--find", "--show", image)
	if err != nil {
		return nil, err
	}
	d := &Disk{Dir: dir, loop: strings.TrimSpace(out), size: size}
	if err := d.Mount(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Mount mounts the disk, after something has unmounted it.
func (d *Disk) Mount() error {
	if err := unix.Mount(d.loop, d.Dir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", d.loop, d.Dir, err)
	}
	return nil
}

// shutdown is EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h): the filesystem ends at once;
// noFlush: nothing more goes to the disk, not even the journal.
const (
	shutdown = 0x8004587d
	noFlush  = 2
)

// Cut cuts the disk's power: what was not synced is lost, and the filesystem
// fails until it is unmounted and mounted again.
func (d *Disk) Cut() error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := uint32(noFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return fmt.Errorf("shut down %s: %w", d.Dir, errno)
	}
	return nil
}

// Limit makes the disk end after so many bytes: what lies behind can be neither
// read nor written. 0: it is whole again.
func (d *Disk) Limit(bytes int64) error {
	f, err := os.OpenFile(d.loop, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return fmt.Errorf("status of %s: %w", d.loop, err)
	}
	info.Sizelimit = uint64(bytes)
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		return fmt.Errorf("limit %s to %d bytes: %w", d.loop, bytes, err)
	}
	return nil
}

// Sync writes all that is under way to the disk.
func (d *Disk) Sync() error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Where returns where on the disk a file's bytes lie: the lowest address and the
// highest, as far as they have reached the disk.
func (d *Disk) Where(ctx context.Context, file string) (low, high int64, err error) {
	out, err := Command(ctx, "filefrag", "-b1", "-v", file) // in units of one byte
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(out) {
		f := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" .:\n", r) })
		if len(f) < 6 || strings.Trim(f[0], "0123456789") != "" {
			continue // NUMBER: FROM.. TO: FROM.. TO: LENGTH: …
		}
		from, err1 := strconv.ParseInt(f[3], 10, 64)
		to, err2 := strconv.ParseInt(f[4], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return 0, 0, fmt.Errorf("filefrag %s: %w", file, err)
		}
		if high == 0 || from < low {
			low = from
		}
		high = max(high, to+1)
	}
	return low, high, nil
}

// Fill takes all the space that is left and returns a function that gives it back.
func (d *Disk) Fill() (func() error, error) {
	path := d.Dir + "/filler"
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for size := int64(64 << 20); size >= 4096; {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		err = unix.Fallocate(int(f.Fd()), 0, info.Size(), size)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil:
			return nil, fmt.Errorf("fill %s: %w", d.Dir, err)
		}
	}
	return func() error { return os.Remove(path) }, nil
}

// Close unmounts the disk and gives its loop device back.
func (d *Disk) Close() error {
	if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", d.Dir, err)
	}
	f, err := os.OpenFile(d.loop, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// takes effect when the last user, which may be a mount that is going away, has gone
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", d.loop, err)
	}
	return nil
}
