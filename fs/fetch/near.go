package fetch

import (
	"slices"

	"github.com/opencontainers/go-digest"
)

const (
	// nearAfter is how much of a layer is filled first behind a place where a reader waited, device
	// bytes: a program reads on in its own files, and tars have what belongs together side by side.
	nearAfter = 24 << 20
	// nearSpots is how many such places are kept, of the whole node.
	nearSpots = 16
)

// spot is a range that fills bring before all others, as a reader has waited just before it.
// Guarded by Scheduler.mu.
type spot struct {
	entry    *entry
	off, end int64 // device bytes
}

// Near tells that a reader waits for device bytes [off, end) of a layer: what follows them is
// filled first, the latest place before the earlier ones.
func (s *Scheduler) Near(d digest.Digest, off, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.layers[d]
	if e == nil || !e.filling {
		return
	}
	s.spots = slices.DeleteFunc(s.spots, func(p *spot) bool {
		return p.entry == e && p.off <= end && off < p.end
	})
	if n := len(s.spots); n == nearSpots {
		s.spots = slices.Delete(s.spots, 0, 1)
	}
	s.spots = append(s.spots, &spot{e, end, min(end+nearAfter, e.layer.Size())})
	s.signal()
}

// pastLocked moves the spot behind off, and drops it at its end.
func (s *Scheduler) pastLocked(p *spot, off int64) {
	if p.off = off; p.off >= p.end {
		s.spots = slices.DeleteFunc(s.spots, func(o *spot) bool { return o == p })
	}
}

// underway returns where the request of the entry ends that brings the byte at off; off if there is
// none.
func (e *entry) underway(off int64) int64 {
	for j := range e.jobs {
		if j.run.Off <= off && off < j.run.Off+j.run.Size {
			return j.run.Off + j.run.Size
		}
	}
	return off
}
