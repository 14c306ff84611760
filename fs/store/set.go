package store

import (
	"math/bits"
	"sync/atomic"
)

// set says which of a layer's spans are present: a bitmap that is read without
// a lock. Writers are serialised by the layer's mutex.
type set struct {
	n     int
	count atomic.Int64
	words []atomic.Uint64
}

func newSet(n int) *set {
	return &set{n: n, words: make([]atomic.Uint64, words(n))}
}

// words returns how many 64-bit words n bits take.
func words(n int) int { return (n + 63) / 64 }

func (s *set) has(i int) bool {
	if uint(i) >= uint(s.n) {
		return false
	}
	return s.words[i>>6].Load()&(1<<(i&63)) != 0
}

func (s *set) full() bool { return s.count.Load() == int64(s.n) }

// add puts span i in and says whether it was missing.
func (s *set) add(i int) bool {
	if uint(i) >= uint(s.n) {
		return false
	}
	bit := uint64(1) << (i & 63)
	if s.words[i>>6].Or(bit)&bit != 0 {
		return false
	}
	s.count.Add(1)
	return true
}

// remove takes span i out and says whether it was there.
func (s *set) remove(i int) bool {
	if uint(i) >= uint(s.n) {
		return false
	}
	bit := uint64(1) << (i & 63)
	if s.words[i>>6].And(^bit)&bit == 0 {
		return false
	}
	s.count.Add(-1)
	return true
}

// snapshot copies the bits.
func (s *set) snapshot() []uint64 {
	w := make([]uint64, len(s.words))
	for i := range w {
		w[i] = s.words[i].Load()
	}
	return w
}

// restore replaces the bits by those of a snapshot; nil is the empty set.
func (s *set) restore(w []uint64) {
	var count int64
	for i := range s.words {
		var v uint64
		if w != nil {
			v = w[i]
		}
		s.words[i].Store(v)
		count += int64(bits.OnesCount64(v))
	}
	s.count.Store(count)
}

// fill puts all spans in.
func (s *set) fill() {
	for i := range s.words {
		s.words[i].Store(^uint64(0))
	}
	if r := s.n & 63; r != 0 {
		s.words[len(s.words)-1].Store(1<<r - 1)
	}
	s.count.Store(int64(s.n))
}
