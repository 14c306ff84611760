package store

import (
	"errors"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// lose gives up a span that could not be read, for why, so that it is fetched and put anew, and
// with it those that have been lost with it: where a file was cut, all behind its end. False: it is
// present still. What happens to one twice is not the fault of the sector that it lay on: then it
// stays, and is read past.
func (l *Layer) lose(i int, why error) bool {
	if !l.given.add(i) {
		return false
	}
	switch {
	case errors.Is(why, fs.ErrNotExist):
		// Somebody removed the file. What was removed by the store's owner is not ours to bring
		// back, and Empty knows.
		if err := l.Empty(); err != nil {
			l.log.Error("a device that was removed is not made anew", "err", err)
		}
		return !l.present.has(i)
	case errors.Is(why, io.ErrUnexpectedEOF):
		if l.lengthen() {
			return !l.present.has(i)
		}
	case errors.Is(why, ErrWrong), errors.Is(why, unix.EIO), errors.Is(why, unix.EUCLEAN),
		errors.Is(why, unix.EBADMSG):
	default:
		return false // it says nothing about the bytes
	}
	if _, err := l.Evict([]int{i}); err != nil {
		l.log.Error("a span that cannot be read stays", "err", err)
		return false
	}
	return !l.present.has(i)
}

// lengthen gives a device that was cut its length back, when what it has lost is out of the store.
// False: it was not cut, or stays so.
func (l *Layer) lengthen() bool {
	spans, err := l.table()
	if err != nil {
		return false
	}
	length, err := l.length()
	if err != nil || length >= l.Size() {
		return false
	}
	var lost []int
	for i := range spans {
		if spans[i].Device+spans[i].Size > length && l.present.has(i) {
			lost = append(lost, i)
		}
	}
	if _, err = l.Evict(lost); err == nil {
		err = l.Restore()
	}
	if err != nil {
		l.log.Error("a device that was cut stays so", "err", err)
	}
	return err == nil
}

// length is how long the device file is now. It is Size, unless somebody cut it: then reads behind
// its end fail, and WriteSpan refuses to write there, until the spans that it lost are evicted.
func (l *Layer) length() (int64, error) {
	f, err := l.device.get()
	if err != nil {
		return 0, err
	}
	return f.Size()
}

// Restore gives a device that was cut its length back. All spans that reach behind its end have
// been evicted.
func (l *Layer) Restore() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	f, err := l.device.get()
	if err != nil {
		return err
	}
	if n, err := f.Size(); err != nil || n >= l.Size() {
		return err
	}
	return l.modify(f, func() error { return f.Truncate(l.Size()) })
}
