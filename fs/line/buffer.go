package line

import (
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

// pool lends buffers. It does not bound them: see Meter.
type pool struct {
	classes [maxClasses]sync.Pool // of *Buffer
}

// Buffer is a lent buffer.
type Buffer struct {
	B     []byte // of the length that was asked for
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

// Buffer lends n bytes, with whatever is in them. What they count for is the caller's to acquire.
func (b *Budget) Buffer(n int64) *Buffer { return b.pool.get(n) }

func (p *pool) get(n int64) *Buffer {
	if n > maxBuffer {
		return &Buffer{B: make([]byte, n)}
	}
	c, size := class(n)
	if b, ok := p.classes[c].Get().(*Buffer); ok {
		b.B = b.B[:n]
		return b
	}
	return &Buffer{B: make([]byte, size)[:n], class: c, pool: p}
}

// Free gives the buffer back; a nil buffer is fine.
func (b *Buffer) Free() {
	if b != nil && b.pool != nil {
		b.pool.classes[b.class].Put(b)
	}
}
