package store

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/mica-snapshotter/mica/index"
)

var (
	// ErrMissing is wrapped by the error of a Read of a span that is not present. By itself it says
	// no more; with another error the span was, and has been given up for that.
	ErrMissing = errors.New("not in the store")
	// ErrUnreadable is wrapped by the error of a Read of a span that is present, and stays so, and
	// cannot be read.
	ErrUnreadable = errors.New("the store cannot read what it has")
	// ErrWrong is wrapped by errors of Read and Compare that mean: what is on disk is not what its
	// digest says.
	ErrWrong = errors.New("the store's bytes are not what their digest says")
)

// readTries is how often a read is begun anew because something has changed meanwhile. After that
// its caller, who knows how long it may take, fetches the bytes.
const readTries = 10

// comparePiece is how many bytes on disk are compared at a time, because a span may have 64 MiB.
const comparePiece = 1 << 20

// Read fills p with the layer's verified bytes from off on; behind the end of the tar there are
// zeros. It fails where a span of these is not present: see ErrMissing and ErrUnreadable. A span of
// which the disk has lost or changed something is given up, to be fetched and put anew, if that can
// help: then it is not present any more.
//
// The caller of a read of 128 KiB or more is taken to keep what it gets, as EROFS and FUSE do in
// the page cache: no second copy stays there on the device's behalf. For the best speed, p begins
// at a page.
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
	if n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
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

// isSure says whether span i, if it is present, is known to hold the layer's bytes: this process
// wrote them, or compared them with their digest, and the disk has not failed since.
func (l *Layer) isSure(i int) bool {
	l.afterFault()
	return l.own.sure.has(i)
}

// doubt compares a span with its digest, once for all who ask at a time, and believes it then. The
// error is nil, too, where the device has changed meanwhile: who reads it notices.
func (l *Layer) doubt(s *index.Span, i int) error {
	_, err, _ := l.doubts.Do(strconv.Itoa(i), func() (any, error) {
		if l.isSure(i) {
			return nil, nil
		}
		l.unchanged() // from here on a change is noticed
		gone := l.evictions.Load()
		err := l.compare(s, l.readAt, nil)
		switch {
		case err != nil && !errors.Is(err, ErrWrong):
			return nil, err
		case !l.unchanged() || l.evictions.Load() != gone:
			return nil, nil
		case err != nil:
			return nil, err
		}
		l.believe(i, gone)
		return nil, nil
	})
	return err
}

// believe makes span i sure: it was read, and compared with its digest, when there had been gone
// evictions, and the device was unchanged after that. It does nothing where there was an eviction
// since, or a fault of the disk lately.
func (l *Layer) believe(i int, gone uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if uint(i) < uint(l.own.sure.n) && l.evictions.Load() == gone && !l.store.faults.lately() {
		l.own.sure.add(i)
	}
}

// readCompared fills p with what was compared itself: on a disk that fails, what is read once more
// may be something else.
func (l *Layer) readCompared(p []byte, off int64) error {
	spans, err := l.table()
	if err != nil {
		return err
	}
	clear(p) // behind the last span there are zeros
	end := off + int64(len(p))
	first, last := spans.Cut(off, end)
	for i := first; i < last; i++ {
		err := l.compare(&spans[i], l.readAt, func(piece []byte, at int64) {
			from, to := max(off, at), min(end, at+int64(len(piece)))
			if from < to {
				copy(p[from-off:], piece[from-at:to-at])
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// compare reads a span, and compares it with its digest. Each piece is shown to use, if that is not
// nil; nothing of it may be believed before compare has returned nil.
func (l *Layer) compare(
	s *index.Span, read func(p []byte, off int64) (int, error), use func(p []byte, off int64),
) error {
	k := l.known.Load()
	if k == nil {
		return errUnknown
	}
	buf, free := k.scratch(min(s.Size, comparePiece))
	defer free()
	sum := sha256.New()
	for off, end := s.Device, s.Device+s.Size; off < end; {
		p := buf[:min(int64(len(buf)), end-off)]
		n, err := read(p, off)
		if n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		sum.Write(p)
		if use != nil {
			use(p, off)
		}
		off += int64(n)
	}
	if [sha256.Size]byte(sum.Sum(nil)) != s.Digest {
		return ErrWrong
	}
	return nil
}

// Compare compares span i on disk with its digest, and shows its bytes to use, in pieces and in
// order, before that is known. The page cache holds afterwards what it held before. The error is
// ErrMissing where the span is not present, or some span went meanwhile; it wraps ErrWrong, or is
// the disk's, where the bytes are of no use.
func (l *Layer) Compare(i int, use func(p []byte, off int64)) error {
	spans, err := l.table()
	if err != nil {
		return err
	}
	gone := l.evictions.Load()
	if !l.present.has(i) {
		return ErrMissing
	}
	err = l.compare(&spans[i], func(p []byte, off int64) (int, error) {
		if err := l.peek(p, off); err != nil {
			return 0, err
		}
		return len(p), nil
	}, use)
	switch {
	case l.evictions.Load() != gone:
		return ErrMissing // it may have been a hole
	case err == nil && l.unchanged():
		l.believe(i, gone)
	}
	return err
}
