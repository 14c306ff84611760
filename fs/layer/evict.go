package layer

import (
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// given is the spans that were given up because the store could not read them. What happens to one
// twice is not the fault of the sector that it lay on: then it is served from memory.
type given struct {
	mu    sync.Mutex
	spans map[int]bool
}

// again notes that a span is given up, and says whether it was before.
func (g *given) again(i int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.spans == nil {
		g.spans = map[int]bool{}
	}
	was := g.spans[i]
	g.spans[i] = true
	return was
}

// Evict takes spans out of the store, and returns how many bytes of the device that was. They are
// fetched again when somebody reads them.
func (l *Layer) Evict(spans []int) (int64, error) {
	t, err := l.table()
	if err != nil {
		return 0, err
	}
	l.noteCome()
	return l.store.Evict(spans, func(i int) (off, size int64) { return t[i].Device, t[i].Size })
}

// Empty takes all spans out of the store at once, by a new device.
func (l *Layer) Empty() error {
	l.noteCome()
	return l.store.Empty()
}

// Fresh is ReadAt for bytes that the store has, and that are to come from the source all the same.
func (l *Layer) Fresh(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if err := l.check(off, n); err != nil {
		return err
	}
	return l.fetch(ctx, want{p: p, off: off, end: off + n, bypass: true})
}

// lose takes a span out of the store that could not be read, so that it is fetched and stored anew,
// and with it those that have been lost with it: where a file was cut, all behind its end. False:
// it is still in the store, and has to be read past it.
func (l *Layer) lose(off int64, err error) bool {
	t, terr := l.table()
	if terr != nil {
		return false
	}
	i := t.Find(off)
	if i < 0 || l.given.again(i) {
		return false
	}
	switch {
	case errors.Is(err, iofs.ErrNotExist):
		// Somebody removed the file. What was removed by the store's owner is not ours to bring
		// back, and Empty knows.
		if err := l.Empty(); err != nil {
			l.counters.failed(err)
		}
		return !l.store.Present(i)
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		if l.lengthen() {
			return !l.store.Present(i)
		}
	case errors.Is(err, errWrong) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG):
	default:
		return false // it says nothing about the bytes
	}
	if _, err = l.Evict([]int{i}); err != nil {
		l.counters.failed(err)
		return false
	}
	return !l.store.Present(i)
}

// lengthen gives a device its length back that was cut, when what it has lost is out of the store.
// False: it was not cut, or stays so.
func (l *Layer) lengthen() bool {
	t, err := l.table()
	if err != nil {
		return false
	}
	length, err := l.store.Length()
	if err != nil || length >= l.Size() {
		return false
	}
	var lost []int
	for i := range t {
		if t[i].Device+t[i].Size > length && l.store.Present(i) {
			lost = append(lost, i)
		}
	}
	if _, err = l.Evict(lost); err == nil {
		err = l.store.Restore()
	}
	if err != nil {
		l.counters.failed(err)
	}
	return err == nil
}
