package store

import (
	"cmp"
	"errors"
	"fmt"
)

// readTries is how often a read is begun anew because something has changed meanwhile. After that
// its caller, who knows how long it may take, fetches the bytes.
const readTries = 10

// Read fills p with the layer's verified bytes from off on; behind the end of the tar there are
// zeros. It fails where a span of these is not present: see ErrMissing and ErrUnreadable. A span of
// which the disk has lost or changed something is given up, to be fetched and put anew, if that can
// help: then it is not present any more.
//
// The caller of a read of 128 KiB or more is taken to keep what it gets, as EROFS and FUSE do in
// the page cache: no second copy stays there on the device's behalf for longer than a minute. For
// the best speed, p begins at a page.
func (l *Layer) Read(p []byte, off int64) error {
	end := off + int64(len(p))
	for range readTries {
		gone := l.evictions.Load()
		if here, err := l.has(off, end); !here || err != nil {
			return cmp.Or(err, ErrMissing)
		}
		err := l.readPresent(p, off, gone)
		if !l.unchanged() || l.evictions.Load() != gone {
			continue // it may have read a hole, or what somebody else has written
		}
		if err != nil {
			return l.readParts(p, off, err)
		}
		return nil
	}
	return fmt.Errorf("read at %d: the device changes all the time: %w", off, ErrUnreadable)
}

// has says whether all spans are present that hold any of [off, end).
func (l *Layer) has(off, end int64) (bool, error) {
	if l.present.full() {
		return true, nil
	}
	spans, err := l.table()
	if err != nil {
		return false, err
	}
	first, last := spans.Cut(off, end)
	for i := first; i < last; i++ {
		if !l.present.has(i) {
			return false, nil
		}
	}
	return true, nil
}

// readParts is Read for what could not be read at once, for err: span by span. The first error
// counts, and all that could not be read is given up.
func (l *Layer) readParts(p []byte, off int64, err error) error {
	spans, terr := l.table()
	if terr != nil {
		return terr
	}
	first, last := spans.Cut(off, off+int64(len(p)))
	if last-first == 1 {
		if l.lose(first, err) {
			return fmt.Errorf("read at %d: %w: %w", off, ErrMissing, err)
		}
		return fmt.Errorf("read at %d: %w: %w", off, ErrUnreadable, err)
	}
	clear(p)
	var failed error
	for _, s := range spans[first:last] {
		from, to := max(off, s.Device), min(off+int64(len(p)), s.Device+s.Size)
		if err := l.Read(p[from-off:to-off], from); err != nil {
			failed = cmp.Or(failed, err)
		}
	}
	return failed
}

// readPresent fills p from spans that were present when there had been gone evictions. What it
// returns counts if nothing changes meanwhile.
func (l *Layer) readPresent(p []byte, off int64, gone uint64) error {
	sure, err := l.makeSure(off, off+int64(len(p)))
	if err != nil {
		return err
	}
	if !sure {
		return l.readCompared(p, off)
	}
	n, err := l.readAt(p, off)
	if err := short(p, n, err); err != nil {
		return err
	}
	if l.settled(p, off) {
		return nil
	}
	err = l.readCompared(p, off)
	if errors.Is(err, ErrWrong) && l.unchanged() {
		l.lost(off, int64(len(p)), gone)
	}
	return err
}

// makeSure compares the spans that hold any of [off, end) with their digests where that has to be
// done. It says whether they are sure then: those of a disk that has failed lately are compared
// each time that they are read. An error says why one is of no use.
func (l *Layer) makeSure(off, end int64) (bool, error) {
	if l.afterFault(); l.own.sure.full() {
		return true, nil
	}
	spans, err := l.table()
	if err != nil {
		return false, err
	}
	first, last := spans.Cut(off, end)
	for i := first; i < last; i++ {
		if l.isSure(i) {
			continue
		}
		if err := l.doubt(&spans[i], i); err != nil {
			return false, err
		}
	}
	for i := first; i < last; i++ {
		if !l.isSure(i) {
			return false, nil
		}
	}
	return true, nil
}
