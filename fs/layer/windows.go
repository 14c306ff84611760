package layer

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/mica-snapshotter/mica/fs/line"
)

// maxSection is the largest windows section that is kept in memory, bytes. A section has 3 to 10
// thousandths of the blob's.
const maxSection = 4 << 20

// windowsOf returns range r of the windows section, whose buffer is the caller's to free where it
// is lent. fetch, if not nil, has to be called, and brings it. Where the section on disk, or the
// one that is kept, turned out to be wrong at the first try, the source is asked.
func (l *Layer) windowsOf(r byteRange, try int) (w *line.Arriving, lent *line.Buffer, fetch func(context.Context) error) {
	if w := l.section.kept(); w != nil && try == 1 {
		return w, nil, nil
	}
	lent = l.o.Budget.Buffer(r.size())
	w = line.NewArriving(r.from, r.to, lent)
	if try == 1 || l.o.Windows == nil {
		if disk, err := l.store.Windows(); err == nil {
			if n, _ := disk.ReadAt(lent.B, r.from); n == len(lent.B) {
				w.Advance(r.size(), nil)
				return w, lent, nil
			}
		}
	}
	if l.o.Windows == nil {
		w.Advance(0, errNoWindows)
		return w, lent, nil
	}
	return w, lent, func(ctx context.Context) error { return l.fetchWindows(ctx, w) }
}

func (l *Layer) fetchWindows(ctx context.Context, w *line.Arriving) error {
	open := func(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
		return l.open(ctx, l.o.Windows, off, n)
	}
	if err := l.host().Receive(ctx, w, open); err != nil {
		return fmt.Errorf("windows: %w", err)
	}
	return nil
}

// section is the whole windows section of a layer, kept for as long as spans are missing.
type section struct {
	mu   sync.Mutex
	w    *line.Arriving // nil: not kept
	stop context.CancelFunc
	over bool // it is not to be fetched, again
}

// kept returns the whole section if it is kept, or on its way.
func (s *section) kept() *line.Arriving {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil || s.w.Failed() {
		return nil
	}
	return s.w
}

// keepWindows begins to fetch the whole windows section, for one request more now and one less for
// each request to come. It does nothing where that is done, or too large, or on disk.
func (l *Layer) keepWindows(ctx context.Context) {
	size := l.index.Header().WindowsSize
	if size == 0 || size > maxSection || l.o.Windows == nil || l.o.Windows.Size() < size {
		return
	}
	s := &l.section
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	if _, err := l.store.Windows(); err == nil || !l.o.Budget.Windows.Try(size) {
		return
	}
	w := line.NewArriving(0, size, &line.Buffer{B: make([]byte, size)})
	s.w = w
	// It outlives the request that it is fetched for first.
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.running.Go(func() {
		if err := l.fetchWindows(ctx, w); err != nil {
			l.counters.failed(err)
		}
	})
}

// drop ends keeping the section. Who decodes by it still goes on.
func (s *section) drop(b *line.Budget) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.w != nil {
		s.stop()
		b.Windows.Release(s.w.Size())
		s.w = nil
	}
}
