package layer

import (
	"context"
	"fmt"
	"sync"

	"github.com/mica-snapshotter/mica/fs/line"
)

// maxSection is the largest windows section that is kept in memory, bytes. A section has 3 to 10
// thousandths of the blob's.
const maxSection = 4 << 20

// windowsOf returns range r of the windows section, or more of it, here or on its way; nil where
// there is none. done is to be called when it is not needed any more. Where the section on disk, or
// the one that is kept, turned out to be wrong at the first try, the source is asked.
func (l *Layer) windowsOf(
	ctx context.Context, r byteRange, try int,
) (w *line.Request, done func()) {
	if w := l.section.kept(); w != nil && try == 1 {
		return w, func() {}
	}
	if try == 1 || l.o.Windows == nil {
		if disk, err := l.store.Windows(); err == nil {
			buf := l.o.Budget.Buffer(r.size())
			if n, _ := disk.ReadAt(buf.B, r.from); n == len(buf.B) {
				return line.Here(r.from, buf), buf.Free
			}
			buf.Free()
		}
	}
	if l.o.Windows == nil {
		return nil, func() {}
	}
	w = l.host().Request(ctx, r.from, r.size(), l.openWindows)
	return w, w.Close
}

// section is the whole windows section of a layer, kept for as long as spans are missing.
type section struct {
	mu   sync.Mutex
	w    *line.Request // nil: not kept
	stop context.CancelFunc
	size int64 // bytes
	over bool  // it is not to be fetched, again
}

// kept returns the whole section if it is kept, or on its way.
func (s *section) kept() *line.Request {
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
	// It outlives the request that it is fetched for first.
	ctx = context.WithoutCancel(ctx)
	fetch, stop := context.WithCancel(ctx)
	w := l.host().Request(fetch, 0, size, l.openWindows)
	s.w, s.stop, s.size = w, stop, size
	l.running.Go(func() {
		if _, err := w.Get(ctx, 0, size); err != nil {
			l.counters.failed(fmt.Errorf("windows: %w", err))
		}
		w.Stop() // not Close: the buffer goes when nobody decodes by it
	})
}

// giveUp ends keeping the section. Who decodes by it still goes on.
func (s *section) giveUp(b *line.Budget) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.w != nil {
		s.stop()
		b.Windows.Release(s.size)
		s.w = nil
	}
}
