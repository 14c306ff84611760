package store

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A file system that cannot place what was written, because the disk fails, may drop it from the page cache and say so to nobody: the
// file has a hole then, and reads as zeros. So nothing is called durable, and nothing that is not durable is read, before it was
// looked whether it is one.

// unsaved is a span that was written since the last sync of the device; -1: all of them were.
type unsaved struct {
	span   int
	off, n int64
}

// Holds says whether none of the n bytes from off on, which were read just before, and whose spans were Present after Evictions had
// returned gone, was lost since it was written. If one was, nothing is Present any more that is not durable, and Evictions has changed.
func (l *Layer) Holds(off, n int64, gone uint64) bool {
	if !l.unsynced.Load() {
		return true
	}
	f, err := l.device.get()
	if err != nil {
		return true // reads say so
	}
	end := min(off+n, l.size)
	if hole, err := f.NextHole(off); err != nil || off >= end || hole >= end {
		return true
	}
	l.flushMu.Lock() // no span goes meanwhile
	defer l.flushMu.Unlock()
	if l.evictions.Load() != gone {
		return false
	}
	l.log.Error("the disk has lost what was written: it is fetched again")
	l.store.faults.note(unix.EIO)
	l.revert()
	return false
}

// checkHoles says whether all is there that was written and did not go. The caller holds flushMu.
func (l *Layer) checkHoles(f file, all []unsaved) error {
	for _, u := range all {
		if u.span < 0 && !l.present.full() || u.span >= 0 && !l.present.has(u.span) || u.n == 0 {
			continue
		}
		hole, err := f.NextHole(u.off)
		if err != nil {
			return err
		}
		if hole < u.off+u.n {
			return fmt.Errorf("a hole at %d, in what was written: %w", hole, unix.EIO)
		}
	}
	return nil
}
