package store

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// What a disk that fails loses of what was written reads as zeros: a file system that found no
// place for it drops it from the page cache, says so to nobody and leaves a hole; one that had a
// place leaves blocks that were never written there, and says so to those who sync the file, later.
// So nothing is called durable before it was looked whether it is a hole, and zeros in what is not
// durable are not believed before they were compared. (Looking for the hole says nothing after a
// read: the page cache has its zeros then.)
//
// Some file systems, ZFS with compression for one, keep zeros that were written as holes. So a hole
// is no fault where the store knows that zeros were written.

// unsaved is a span that was written and is not known to be durable; -1: all of them.
type unsaved struct {
	span   int
	off, n int64
	// Of the first sector, and of the last, it has a part alone, of zeros: whether that is all of
	// zeros nobody knows.
	head, tail bool
}

// known returns the range of which zeros can tell what was written.
func (u *unsaved) known() (from, to int64) {
	const size = 1 << sectorShift
	from, to = u.off, u.off+u.n
	if u.head {
		from = (from + size - 1) / size * size
	}
	if u.tail {
		to = to / size * size
	}
	return from, to
}

func (u *unsaved) overlaps(off, n int64) bool { return u.off < off+n && off < u.off+u.n }

// settled says that p, which was read from off on, from spans that were present and sure, is what
// was written there: it is durable, or none of it reads as what was lost does, but for what is
// known to be zeros.
func (l *Layer) settled(p []byte, off int64) bool {
	p = p[:min(int64(len(p)), max(l.size-off, 0))]
	l.mu.Lock()
	risk := l.atRisk(off, int64(len(p)))
	l.mu.Unlock()
	return !risk || eachZero(p, off, func(sector int64, _ bool) bool {
		const size = 1 << sectorShift
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.zeros.has(sector) || !l.atRisk(sector*size, size)
	})
}

// atRisk says whether any of the n bytes from off on may not be durable. The caller holds mu.
func (l *Layer) atRisk(off, n int64) bool {
	return slices.ContainsFunc(l.unsaved, func(u unsaved) bool { return u.overlaps(off, n) })
}

// checkHoles says whether all is there that was written and did not go. The caller holds flushMu.
func (l *Layer) checkHoles(f files.File, all []unsaved) error {
	for _, u := range all {
		if u.span < 0 && !l.present.full() || u.span >= 0 && !l.present.has(u.span) || u.n == 0 {
			continue
		}
		for at, end := u.known(); at < end; {
			hole, err := f.NextHole(at)
			if err != nil {
				return err
			}
			if hole >= end {
				break
			}
			if at = l.zerosEnd(hole, end); at == hole {
				return fmt.Errorf("a hole at %d, in what was written: %w", hole, unix.EIO)
			}
		}
	}
	return nil
}

// zerosEnd returns where the sectors end, from the one at off on, that are known to be zeros; end
// at the most.
func (l *Layer) zerosEnd(off, end int64) int64 {
	const size = 1 << sectorShift
	l.mu.Lock()
	defer l.mu.Unlock()
	for off < end && l.zeros.has(off/size) {
		off = (off/size + 1) * size
	}
	return min(off, end)
}
