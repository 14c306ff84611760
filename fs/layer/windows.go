package layer

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/mica-snapshotter/mica/index"
)

// maxSection is the largest windows section that is kept in memory, bytes. A section has 1 to 4
// thousandths of the blob's.
const maxSection = 4 << 20

// windows is a range of a layer's windows section that is here, or on its way.
type windows struct {
	at    byteRange
	buf   *buffer
	owned bool // by whoever has it, and freed by close

	mu    sync.Mutex
	upTo  int64         // offset where the bytes end that are here
	more  chan struct{} // closed, and replaced, when upTo or err changes
	ended bool
	err   error
}

func newWindows(b *Budget, at byteRange, owned bool) *windows {
	return &windows{at: at, buf: b.pool.get(at.size()), owned: owned, upTo: at.from, more: make(chan struct{})}
}

// get waits for the bytes of r.
func (w *windows) get(ctx context.Context, r index.Range) ([]byte, error) {
	for {
		w.mu.Lock()
		here, err, more := w.upTo >= r.Off+r.Size, w.err, w.more
		w.mu.Unlock()
		switch {
		case here:
			return w.buf.b[r.Off-w.at.from:][:r.Size:r.Size], nil
		case err != nil:
			return nil, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// advance says how far the bytes are here, and whether, and why, no more will come.
func (w *windows) advance(upTo int64, ended bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.upTo, w.ended, w.err = upTo, ended, err
	close(w.more)
	w.more = make(chan struct{})
}

func (w *windows) close() {
	if w.owned {
		w.buf.free()
	}
}

// fill reads all of w from the source.
func (w *windows) fill(ctx context.Context, l *Layer) error {
	err := w.receive(ctx, l)
	if err != nil {
		err = fmt.Errorf("windows: %w", err)
		w.mu.Lock()
		upTo := w.upTo
		w.mu.Unlock()
		w.advance(upTo, true, err)
	}
	return err
}

func (w *windows) receive(ctx context.Context, l *Layer) error {
	body, err := l.open(ctx, l.o.Windows, w.at.from, w.at.size())
	if err != nil {
		return err
	}
	defer body.Close()
	const piece = 64 << 10
	for p, upTo := w.buf.b, w.at.from; len(p) > 0; {
		n, err := io.ReadFull(body, p[:min(piece, len(p))])
		l.counters.fetched.Add(int64(n))
		if err != nil {
			return short(err)
		}
		p = p[n:]
		upTo += int64(n)
		w.advance(upTo, len(p) == 0, nil)
	}
	return nil
}

// windowsOf returns range r of the windows section. fetch, if not nil, has to be called, and brings it. Where the section
// on disk, or the one that is kept, turned out to be wrong at the first try, the source is asked.
func (l *Layer) windowsOf(ctx context.Context, r byteRange, try int) (w *windows, fetch func() error) {
	if w := l.keptWindows(); w != nil && try == 1 {
		return w, nil
	}
	w = newWindows(l.o.Budget, r, true)
	if try == 1 || l.o.Windows == nil {
		if disk, err := l.store.Windows(); err == nil {
			if n, _ := disk.ReadAt(w.buf.b, r.from); n == len(w.buf.b) {
				w.advance(r.to, true, nil)
				return w, nil
			}
		}
	}
	if l.o.Windows == nil {
		w.advance(r.from, true, errNoWindows)
		return w, nil
	}
	return w, func() error { return w.fill(ctx, l) }
}

// section is the whole windows section of a layer, kept for as long as spans are missing.
type section struct {
	mu   sync.Mutex
	w    *windows // nil: not kept
	stop context.CancelFunc
	off  bool // not to be kept (any more)
}

// keptWindows returns the whole section if it is kept, or on its way.
func (l *Layer) keptWindows() *windows {
	l.section.mu.Lock()
	defer l.section.mu.Unlock()
	if w := l.section.w; w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err == nil {
			return w
		}
	}
	return nil
}

// keepWindows begins to fetch the whole windows section, for one request more now and one less for each request to come.
// It does nothing where that is done, or too large, or on disk.
func (l *Layer) keepWindows(ctx context.Context) {
	size := l.index.Header().WindowsSize
	if size == 0 || size > maxSection || l.o.Windows == nil || l.o.Windows.Size() < size {
		return
	}
	s := &l.section
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off || s.w != nil {
		return
	}
	s.off = true
	if _, err := l.store.Windows(); err == nil || !l.o.Budget.keep(size) {
		return
	}
	w := &windows{at: byteRange{0, size}, buf: &buffer{b: make([]byte, size)}, more: make(chan struct{})}
	s.w = w
	// It outlives the request that it is fetched for first.
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.running.Go(func() {
		if err := w.fill(ctx, l); err != nil {
			l.counters.failed(err)
		}
	})
}

// dropWindows ends keeping the section. Who decodes by it still goes on.
func (l *Layer) dropWindows() {
	s := &l.section
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = true
	if s.w != nil {
		s.stop()
		l.o.Budget.keep(-s.w.at.size())
		s.w = nil
	}
}
