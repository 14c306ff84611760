package store

import (
	"crypto/sha256"
	"errors"
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

// comparePiece is how many bytes on disk are compared at a time, because a span may have 64 MiB.
const comparePiece = 1 << 20

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
		err := l.compare(s, nil)
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
	if l.evictions.Load() == gone && !l.store.faults.lately() {
		l.own.sure.add(i)
	}
}

// compare reads a span, and compares it with its digest. Each piece is shown to use, if that is not
// nil; nothing of it may be believed before compare has returned nil.
func (l *Layer) compare(s *index.Span, use func(p []byte, off int64)) error {
	k := l.known.Load()
	if k == nil {
		return errUnknown
	}
	buf, free := k.scratch(min(s.Size, comparePiece))
	defer free()
	sum := sha256.New()
	for off, end := s.Device, s.Device+s.Size; off < end; {
		p := buf[:min(int64(len(buf)), end-off)]
		n, err := l.readAt(p, off)
		if err := short(p, n, err); err != nil {
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
		err := l.compare(&spans[i], func(piece []byte, at int64) {
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

// Compare compares span i on disk with its digest, and shows its bytes to use, in pieces and in
// order, before that is known. The page cache soon holds what it held before. The error is
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
	err = l.compare(&spans[i], use)
	switch {
	case l.evictions.Load() != gone:
		return ErrMissing // it may have been a hole
	case err == nil && l.unchanged():
		l.believe(i, gone)
	}
	return err
}
