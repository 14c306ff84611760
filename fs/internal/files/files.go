// Package files is the file operations whose order decides what a power cut leaves: the store does
// all its writing through a Disk, so that a test can record them, rebuild what a disk could hold at
// any moment, and have them fail.
package files

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Disk is a file system. Calls may run in parallel.
type Disk interface {
	// Open takes the flags of open(2). With O_DIRECT it fails with EINVAL or
	// EOPNOTSUPP where the file system knows no such thing.
	Open(name string, flag int) (File, error)
	Rename(from, to string) error
	Mkdir(name string) error // with its parents; existing ones are fine
	RemoveAll(name string) error
	// SyncDir makes the names in a folder durable.
	SyncDir(name string) error
}

// File is an open file of a Disk.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Size() (int64, error)
	// Sync makes the content, and the size, durable.
	Sync() error
	// PunchHole frees the n bytes from off on, which read as zeros from then on. The size stays.
	PunchHole(off, n int64) error
	// Seal marks the file, and Sealed says whether it is: see store.Layer.Sealed.
	Seal() error
	Sealed() (bool, error)
	// NextHole returns where the first hole begins at off or behind it; the file's end is one.
	NextHole(off int64) (int64, error)
	// Stamp changes whenever somebody changes the file: its change time.
	Stamp() (int64, error)
	// DropCache drops the n bytes from off on from the page cache, as far as
	// they are durable and nobody uses their pages.
	DropCache(off, n int64) error
	// DirectAlign returns, of a file opened with O_DIRECT, how reads must be
	// aligned, in bytes: the buffer's address, and offset and length.
	DirectAlign() (memory, unit int64)
	Fd() uintptr
	Close() error
}

// OS is the machine's own file system.
type OS struct{}

var _ Disk = OS{}

// Open implements Disk.
func (OS) Open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if flag&unix.O_DIRECT == 0 {
		return osFile{File: f, raw: raw}, nil
	}
	memory, unit, err := directAlign(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return osFile{f, raw, memory, unit}, nil
}

// Rename implements Disk.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Mkdir implements Disk.
func (OS) Mkdir(name string) error { return os.MkdirAll(name, 0o700) }

// RemoveAll implements Disk.
func (OS) RemoveAll(name string) error { return os.RemoveAll(name) }

// SyncDir implements Disk.
func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// osFile adds to *os.File what File asks for.
type osFile struct {
	*os.File
	raw          syscall.RawConn
	memory, unit int64 // of DirectAlign
}

func (f osFile) DirectAlign() (memory, unit int64) { return f.memory, f.unit }

func (f osFile) DropCache(off, n int64) error {
	if err := unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED); err != nil {
		return &fs.PathError{Op: "fadvise", Path: f.Name(), Err: err}
	}
	return nil
}

func (f osFile) PunchHole(off, n int64) error {
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return &fs.PathError{Op: "punch hole", Path: f.Name(), Err: err}
	}
	return nil
}

// sealedMode is a sealed file's mode: the sticky bit means nothing to the kernel on a file that is
// no folder.
const sealedMode = fs.ModeSticky | 0o600

func (f osFile) Seal() error { return f.Chmod(sealedMode) }

func (f osFile) Sealed() (bool, error) {
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	return st.Mode()&fs.ModeSticky != 0, nil
}

func (f osFile) NextHole(off int64) (int64, error) {
	q := seekers.Get().(*seeker)
	defer seekers.Put(q)
	q.off = off
	err := f.raw.Control(q.run)
	if err == nil {
		err = q.err
	}
	if err != nil {
		return 0, &fs.PathError{Op: "seek hole", Path: f.Name(), Err: err}
	}
	return q.hole, nil
}

// seeker is one lseek(2), kept as a stamper is.
type seeker struct {
	off, hole int64
	err       error
	run       func(fd uintptr)
}

var seekers = sync.Pool{New: func() any {
	q := &seeker{}
	q.run = func(fd uintptr) { q.hole, q.err = unix.Seek(int(fd), q.off, unix.SEEK_HOLE) }
	return q
}}

// Stamp may run while the file is closed, which a bare file descriptor could not: it can be another
// file's by then.
func (f osFile) Stamp() (int64, error) {
	q := stampers.Get().(*stamper)
	defer stampers.Put(q)
	err := f.raw.Control(q.run)
	if err == nil {
		err = q.err
	}
	if err != nil {
		return 0, &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	return q.st.Ctim.Nano(), nil
}

// stamper is one fstat(2). They are kept, because a read makes one and is not to allocate.
type stamper struct {
	st  unix.Stat_t
	err error
	run func(fd uintptr)
}

var stampers = sync.Pool{New: func() any {
	q := &stamper{}
	q.run = func(fd uintptr) { q.err = unix.Fstat(int(fd), &q.st) }
	return q
}}

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Sync is fdatasync(2): content and size are durable after it, the times are
// not, which nobody reads.
func (f osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

// fallbackAlign is the alignment that is tried where the kernel does not tell:
// the sector of nearly all disks.
const fallbackAlign = 512

// directAlign returns how O_DIRECT wants reads of f to be aligned, in bytes: the
// buffer's address, and the offset and length in the file.
func directAlign(f *os.File) (memory, unit int64, err error) {
	var st unix.Statx_t
	told := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) == nil // Linux 6.1
	if !told || st.Mask&unix.STATX_DIOALIGN == 0 {
		return fallbackAlign, fallbackAlign, nil
	}
	if st.Dio_mem_align == 0 || st.Dio_offset_align == 0 {
		return 0, 0, &fs.PathError{Op: "open with O_DIRECT", Path: f.Name(), Err: unix.EOPNOTSUPP}
	}
	return int64(st.Dio_mem_align), int64(st.Dio_offset_align), nil
}
