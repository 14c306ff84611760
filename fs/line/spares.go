package line

import (
	"container/list"
	"sync"
)

// Spares are spans that could not be written, or not be read back: the last few, so that reads next
// to each other do not fetch one span again and again while the disk is full.
type Spares struct {
	limit int64 // bytes

	mu    sync.Mutex
	bytes int64
	order list.List // of *spare, the oldest first
	byKey map[spareKey]*list.Element
}

type spareKey struct {
	owner any
	span  int
}

type spare struct {
	key spareKey
	buf *Buffer
}

// Put takes over buf, which has a span of the owner.
func (s *Spares) Put(owner any, span int, buf *Buffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := spareKey{owner, span}
	s.removeLocked(s.byKey[key])
	if s.byKey == nil {
		s.byKey = map[spareKey]*list.Element{}
	}
	s.byKey[key] = s.order.PushBack(&spare{key, buf})
	s.bytes += int64(cap(buf.B))
	for s.bytes > s.limit {
		s.removeLocked(s.order.Front())
	}
}

// Use calls fn with the bytes of a spare span, if there are any.
func (s *Spares) Use(owner any, span int, fn func([]byte)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byKey[spareKey{owner, span}]
	if e == nil {
		return false
	}
	fn(e.Value.(*spare).buf.B)
	s.order.MoveToBack(e)
	return true
}

// Forget lets go of all that an owner has.
func (s *Spares) Forget(owner any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.byKey {
		if key.owner == owner {
			s.removeLocked(e)
		}
	}
}

func (s *Spares) removeLocked(e *list.Element) {
	if e == nil {
		return
	}
	v := s.order.Remove(e).(*spare)
	delete(s.byKey, v.key)
	s.bytes -= int64(cap(v.buf.B))
	// Left to the garbage collector: a reader may still look at it.
}
