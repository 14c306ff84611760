package store

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// faultTime is for how long after an error of the disk nothing is believed that was not compared
// with its digest just before: longer than the kernel keeps what is to be written
// (dirty_expire_centisecs and dirty_writeback_centisecs, 35 s).
const faultTime = time.Minute

// faults is what is known of a disk that fails. A file system tells those who sync a file of what
// it could not write, but not of all: what it has no place for, and what is written back to make
// room in the page cache, can go without a word, a part of a page as well as a whole one. So one
// error, of whatever layer, makes all that this process has written and seen doubtful.
type faults struct {
	count atomic.Uint64 // of times in which errors came
	last  atomic.Int64  // when one came last, in nanoseconds since 1970; 0: never
}

// note takes in an error of the disk; nil, and one that says only that there is no room, are none.
func (f *faults) note(err error) {
	if err == nil || atomicfile.NoRoom(err) || errors.Is(err, ErrCut) {
		return
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return
	}
	now := time.Now().UnixNano()
	if last := f.last.Swap(now); last == 0 || now-last >= int64(faultTime) {
		f.count.Add(1)
	}
}

// lately says whether the disk has failed within faultTime.
func (f *faults) lately() bool {
	last := f.last.Load()
	return last != 0 && time.Now().UnixNano()-last < int64(faultTime)
}

// afterFault makes all spans doubtful if the disk has failed since it was called last. It says
// whether it did.
func (l *Layer) afterFault() bool {
	n := l.store.faults.count.Load()
	if l.own.faults.Load() == n {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own.faults.Swap(n) == n {
		return false
	}
	l.own.sure.restore(nil)
	l.evictions.Add(1)
	return true
}

// ErrCut is wrapped by errors about a device file that is shorter than the layer: see lengthen.
var ErrCut = errors.New("the device has lost its end")
