package store

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directFrom is the smallest read that goes past the page cache, bytes. Measured: from
// there on a read with O_DIRECT is faster than one through a cold page cache.
const directFrom = 128 << 10

// directFile is a device opened with O_DIRECT by its first use.
type directFile struct {
	lazyFile
	refused atomic.Bool // the file system knows no O_DIRECT
}

// readDirect fills p from off on past the page cache, but for the ends that are
// not aligned. False: it could not, and p is to be read the other way, which
// also finds out what is wrong.
func (l *Layer) readDirect(p []byte, off int64) bool {
	if l.direct.refused.Load() || off < 0 || off > l.Size()-int64(len(p)) {
		return false
	}
	f, err := l.direct.get()
	if err != nil {
		l.direct.learn(err)
		return false
	}
	memory, unit := f.DirectAlign()
	from := (off+unit-1)/unit*unit - off
	to := (off+int64(len(p)))/unit*unit - off
	if to-from < directFrom/2 || uintptr(unsafe.Pointer(&p[from]))%uintptr(memory) != 0 {
		return false
	}
	n, err := f.ReadAt(p[from:to], off+from)
	if n == 0 && err != nil {
		l.direct.learn(err)
	}
	if int64(n) < to-from {
		return false
	}
	return l.readEnd(p[:from], off) && l.readEnd(p[to:], off+to)
}

// readEnd fills p, which is less than a unit, through the page cache.
func (l *Layer) readEnd(p []byte, off int64) bool {
	if len(p) == 0 {
		return true
	}
	n, _ := l.readBuffered(p, off)
	return n == len(p)
}

// learn remembers an error that says that O_DIRECT does not work here.
func (d *directFile) learn(err error) {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		d.refused.Store(true)
	}
}
