package layer

import (
	"container/list"
	"math/bits"
	"sync"
)

// Buffers come in four sizes between a power of two and the next, so that at most a fifth of one is
// in vain; larger ones are not kept.
const (
	minBuffer  = 4 << 10
	maxBuffer  = 16 << 20
	maxClasses = 4*12 + 1 // 16 MiB is 4 KiB doubled 12 times
)

// pool lends buffers. It does not bound them: see meter.
type pool struct {
	classes [maxClasses]sync.Pool // of *buffer
}

// buffer is a lent buffer.
type buffer struct {
	b     []byte // of the length that was asked for
	class int
	pool  *pool // nil: it is not kept
}

// class returns which class has n bytes, and how many it has.
func class(n int64) (class int, size int64) {
	if n <= minBuffer {
		return 0, minBuffer
	}
	doubled := bits.Len64(uint64(n-1)) - 1 // 2^doubled < n ≤ 2^(doubled+1)
	step := int64(1) << (doubled - 2)
	steps := (n - 1<<doubled + step - 1) / step // 1 to 4
	return 4*(doubled-12) + int(steps), 1<<doubled + steps*step
}

func (p *pool) get(n int64) *buffer {
	if n > maxBuffer {
		return &buffer{b: make([]byte, n)}
	}
	c, size := class(n)
	if b, ok := p.classes[c].Get().(*buffer); ok {
		b.b = b.b[:n]
		return b
	}
	return &buffer{b: make([]byte, size)[:n], class: c, pool: p}
}

// free gives the buffer back; a nil buffer is fine.
func (b *buffer) free() {
	if b != nil && b.pool != nil {
		b.pool.classes[b.class].Put(b)
	}
}

// spares are spans that could not be written, or not be read back: the last
// few, so that reads next to each other do not fetch one span again and again while
// the disk is full.
type spares struct {
	limit int64 // bytes

	mu    sync.Mutex
	bytes int64
	order list.List // of *spare, the oldest first
	byKey map[spareKey]*list.Element
}

type spareKey struct {
	layer *Layer
	span  int
}

type spare struct {
	key spareKey
	buf *buffer
}

// put takes over buf.
func (s *spares) put(l *Layer, span int, buf *buffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := spareKey{l, span}
	s.dropLocked(s.byKey[key])
	if s.byKey == nil {
		s.byKey = map[spareKey]*list.Element{}
	}
	s.byKey[key] = s.order.PushBack(&spare{key, buf})
	s.bytes += int64(cap(buf.b))
	for s.bytes > s.limit {
		s.dropLocked(s.order.Front())
	}
}

// use calls fn with the bytes of a spare span, if there are any.
func (s *spares) use(l *Layer, span int, fn func([]byte)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byKey[spareKey{l, span}]
	if e == nil {
		return false
	}
	fn(e.Value.(*spare).buf.b)
	s.order.MoveToBack(e)
	return true
}

// drop forgets all that layer l has.
func (s *spares) drop(l *Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.byKey {
		if key.layer == l {
			s.dropLocked(e)
		}
	}
}

func (s *spares) dropLocked(e *list.Element) {
	if e == nil {
		return
	}
	v := s.order.Remove(e).(*spare)
	delete(s.byKey, v.key)
	s.bytes -= int64(cap(v.buf.b))
	// Left to the garbage collector: the span's flight may still show it.
}
