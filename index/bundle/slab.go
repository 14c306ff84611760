package bundle

import (
	"sync"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// slabSize is how many things are allocated at once.
const slabSize = 256

// Slabs that are in no use. Unpacking an image's layers, one after the other, then leaves little
// garbage.
var (
	nodeSlabs   = sync.Pool{New: func() any { return new([slabSize]erofs.Node) }}
	extentSlabs = sync.Pool{New: func() any { return new([slabSize]erofs.Extent) }}
)

// arena holds the nodes and extents of one tree.
type arena struct {
	nodes   slabs[erofs.Node]
	extents slabs[erofs.Extent]
}

func newArena() *arena {
	return &arena{
		nodes:   slabs[erofs.Node]{pool: &nodeSlabs},
		extents: slabs[erofs.Extent]{pool: &extentSlabs},
	}
}

// release gives back all that the arena handed out: nothing may refer to it any more.
func (a *arena) release() {
	a.nodes.release()
	a.extents.release()
}

// slabs hands out zero values of T, from slabs of a pool.
type slabs[T any] struct {
	pool  *sync.Pool // of *[slabSize]T, all zero
	slabs []*[slabSize]T
	used  int // of the last slab
}

// next returns a further one, as a slice that cannot grow in its slab.
func (s *slabs[T]) next() []T {
	if len(s.slabs) == 0 || s.used == slabSize {
		s.slabs, s.used = append(s.slabs, s.pool.Get().(*[slabSize]T)), 0
	}
	s.used++
	return s.slabs[len(s.slabs)-1][s.used-1 : s.used : s.used]
}

func (s *slabs[T]) release() {
	for _, slab := range s.slabs {
		clear(slab[:]) // what it refers to is garbage then
		s.pool.Put(slab)
	}
	s.slabs, s.used = nil, 0
}
