package index

import "sync"

// slabSize is how many nodes or extents are allocated at once.
const slabSize = 256

// Slabs of those who are done with them. Unpacking an image's layers, one after the other, then leaves little garbage.
var (
	nodeSlabs   = sync.Pool{New: func() any { return new([slabSize]Node) }}
	extentSlabs = sync.Pool{New: func() any { return new([slabSize]Extent) }}
)

// slabs hands out nodes and extents, all of which are given back at once.
type slabs struct {
	nodes                  []*[slabSize]Node
	extents                []*[slabSize]Extent
	usedNodes, usedExtents int // of the last slab
}

// node returns a zero node.
func (s *slabs) node() *Node {
	if len(s.nodes) == 0 || s.usedNodes == slabSize {
		s.nodes, s.usedNodes = append(s.nodes, nodeSlabs.Get().(*[slabSize]Node)), 0
	}
	s.usedNodes++
	return &s.nodes[len(s.nodes)-1][s.usedNodes-1]
}

// extent returns a slice of one zero extent. Appending to it leaves the slab.
func (s *slabs) extent() []Extent {
	if len(s.extents) == 0 || s.usedExtents == slabSize {
		s.extents, s.usedExtents = append(s.extents, extentSlabs.Get().(*[slabSize]Extent)), 0
	}
	s.usedExtents++
	return s.extents[len(s.extents)-1][s.usedExtents-1 : s.usedExtents : s.usedExtents]
}

// release gives back all that was handed out: nothing may refer to it any more.
func (s *slabs) release() {
	for _, slab := range s.nodes {
		clear(slab[:]) // of what it refers to as well
		nodeSlabs.Put(slab)
	}
	for _, slab := range s.extents {
		clear(slab[:])
		extentSlabs.Put(slab)
	}
	*s = slabs{}
}
