package layer

import (
	"crypto/sha256"
	"errors"
	"io"
	"strconv"

	"github.com/mica-snapshotter/mica/index"
)

// errWrong is why a span in the store is of no use.
var errWrong = errors.New("the store's bytes are not what their digest says")

// sure compares the present spans that hold any of [off, end) with their digests where that has to
// be done. An error says why one is of no use.
func (l *Layer) sure(off, end int64) error {
	if l.store.AllSure() {
		return nil
	}
	spans, err := l.table()
	if err != nil {
		return err
	}
	first, last := l.cut(spans, off, end)
	for i := first; i < last; i++ {
		if l.store.Sure(i) {
			continue
		}
		if err := l.doubt(spans, i); err != nil {
			return err
		}
	}
	return nil
}

// readPresent fills p from spans that the store had when there had been gone evictions. It returns
// how much of it, with an error if that is not all. valid: what it returns is of the layer, and not
// of a store that has changed meanwhile.
func (l *Layer) readPresent(p []byte, off int64, gone uint64) (n int, valid bool, err error) {
	n, err = l.readSure(p, off, gone)
	return n, l.store.Unchanged() && l.store.Evictions() == gone, err
}

// readSure is readPresent for a store that does not change meanwhile.
func (l *Layer) readSure(p []byte, off int64, gone uint64) (int, error) {
	end := off + int64(len(p))
	if err := l.sure(off, end); err != nil {
		return 0, err
	}
	if doubtful, err := l.doubtful(off, end); doubtful || err != nil {
		if err == nil {
			err = l.compared(p, off)
		}
		if err != nil {
			return 0, err
		}
		return len(p), nil
	}
	n, err := l.store.ReadAt(p, off)
	if l.store.Settled(p[:n], off) {
		return n, err
	}
	if err = l.compared(p, off); err != nil {
		if errors.Is(err, errWrong) && l.store.Unchanged() {
			l.store.Lost(off, int64(len(p)), gone)
		}
		return 0, err
	}
	return len(p), nil
}

// doubtful says whether a span that holds any of [off, end) has to be compared each time that it is
// read.
func (l *Layer) doubtful(off, end int64) (bool, error) {
	if l.store.AllSure() {
		return false, nil
	}
	spans, err := l.table()
	if err != nil {
		return false, err
	}
	first, last := l.cut(spans, off, end)
	for i := first; i < last; i++ {
		if !l.store.Sure(i) {
			return true, nil
		}
	}
	return false, nil
}

// compared fills p with what was compared itself: on a disk that fails, what is read once more may
// be something else.
func (l *Layer) compared(p []byte, off int64) error {
	spans, err := l.table()
	if err != nil {
		return err
	}
	clear(p) // behind the last span there are zeros
	first, last := l.cut(spans, off, off+int64(len(p)))
	for i := first; i < last; i++ {
		if err := l.copyCompared(p, off, &spans[i]); err != nil {
			return err
		}
	}
	return nil
}

// comparePiece is how many bytes on disk are compared at a time, because a span may have 64 MiB.
const comparePiece = 1 << 20

// compare reads a span from the store, and compares it with its digest. Each piece is shown to use,
// if that is not nil; nothing of it may be believed before compare has returned nil.
func (l *Layer) compare(s *index.Span, use func(p []byte, off int64)) error {
	b := l.o.Budget
	defer b.Compare()()
	buf := b.Buffer(min(s.Size, comparePiece))
	defer buf.Free()
	sum := sha256.New()
	for off, end := s.Device, s.Device+s.Size; off < end; {
		p := buf.B[:min(int64(len(buf.B)), end-off)]
		n, err := l.store.ReadAt(p, off)
		if n < len(p) && (err == nil || errors.Is(err, io.EOF)) {
			return io.ErrUnexpectedEOF
		}
		if n < len(p) {
			return err
		}
		sum.Write(p)
		if use != nil {
			use(p, off)
		}
		off += int64(n)
	}
	if [sha256.Size]byte(sum.Sum(nil)) != s.Digest {
		return errWrong
	}
	return nil
}

// copyCompared copies what p is to hold of a span.
func (l *Layer) copyCompared(p []byte, off int64, s *index.Span) error {
	return l.compare(s, func(piece []byte, at int64) {
		from, to := max(off, at), min(off+int64(len(p)), at+int64(len(piece)))
		if from < to {
			copy(p[from-off:], piece[from-at:to-at])
		}
	})
}

// doubt compares a span with its digest, once for all who ask at a time.
func (l *Layer) doubt(spans index.Spans, i int) error {
	_, err, _ := l.doubts.Do(strconv.Itoa(i), func() (any, error) {
		if l.store.Sure(i) {
			return nil, nil
		}
		l.store.Unchanged() // from here on a change is noticed
		gone := l.store.Evictions()
		err := l.compare(&spans[i], nil)
		switch {
		case err != nil && !errors.Is(err, errWrong):
			return nil, err
		case !l.store.Unchanged() || l.store.Evictions() != gone:
			return nil, nil // the reader notices too
		case err != nil:
			return nil, err
		}
		l.store.Believe(i, gone)
		return nil, nil
	})
	return err
}

// repair puts a span right of which the store has wrong bytes that it cannot give up.
func (l *Layer) repair(i int, s *index.Span, data []byte) {
	if l.store.Sure(i) {
		return
	}
	gone := l.store.Evictions()
	if err := l.store.Repair(s.Device, data); err != nil {
		l.counters.failed(err)
		return
	}
	l.store.Believe(i, gone)
}
