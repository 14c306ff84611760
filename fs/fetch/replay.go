package fetch

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
)

// Range is a range of a layer's device.
type Range struct {
	Layer     digest.Digest
	Off, Size int64 // bytes; the end may lie behind the device's
}

const (
	// mergeGap is how far apart two ranges may be that are fetched as one, device bytes: less than a
	// span, so that it seldom brings one more.
	mergeGap = 256 << 10
	// So many ranges at a time are looked through for neighbours in the device, which go into one request; beyond
	// that they stay in their order. The first such group has groupFirst device bytes, each other twice as many as the one
	// before, up to groupMost.
	groupFirst = 8 << 20
	groupMost  = 64 << 20
	// groupRanges bounds a group as well: a small range still costs a span.
	groupRanges = 64
)

// Replay is a profile that is being fetched.
type Replay struct {
	s      *Scheduler
	ranges int
	bytes  int64
	done   chan struct{}

	// Guarded by Scheduler.mu:
	todo    []*part                // what nothing is under way for
	running int                    // requests
	ended   bool                   // done is closed
	seen    map[digest.Digest]*use // the layers that were found so far
}

// part is a range of a replay.
type part struct {
	Range
	// What is about to come without a request is put off until then, and for the first time then.
	later, first time.Time
}

const (
	plannedAgain = 10 * time.Millisecond // how long what is about to come is put off before it is looked at again
	plannedMost  = 2 * time.Second       // how long in all
	plannedParts = 8                     // so many parts are put off at a time; those behind them are not looked at
)

// putOff puts off a place whose bytes are about to come without a request, for as long as that may take.
func (s *Scheduler) putOff(p *place, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.todo.first.IsZero() {
		p.todo.first = now
	}
	p.todo.later = now.Add(plannedAgain)
	return now.Sub(p.todo.first) < plannedMost
}

// use is what a replay has to do with one layer.
type use struct {
	layer  Layer
	before layer.Uses  // when the replay came to it
	after  *layer.Uses // when the layer was forgotten; nil: it is not
}

// ReplayStats says how a replay went. Bytes are those of the device, counted by spans, which are what is
// fetched.
type ReplayStats struct {
	Ranges   int   // that were given
	Bytes    int64 // in these ranges
	Brought  int64 // bytes that came because of the replay, or that a reader was quicker to ask for
	Read     int64 // of these, bytes in spans that readers have asked for
	Missed   int64 // reads that waited for something which no replay was going to bring, in the first minute
	Finished bool  // nothing is left to fetch
}

// Replay fetches the ranges, given in the order of their first access, about in that order. Those of layers that
// are not known yet wait for Add; those of a layer that is forgotten meanwhile are dropped.
func (s *Scheduler) Replay(ranges []Range) *Replay {
	r := &Replay{s: s, ranges: len(ranges), done: make(chan struct{}), seen: map[digest.Digest]*use{}}
	for _, g := range ranges {
		r.bytes += g.Size
	}
	for _, g := range Arrange(ranges) {
		r.todo = append(r.todo, &part{Range: g})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.todo = slices.DeleteFunc(r.todo, func(g *part) bool {
		e := s.layers[g.Layer]
		return s.o.Fill == None || e != nil && e.stopped
	})
	s.replays = append(s.replays, r)
	r.endLocked()
	s.signal()
	return r
}

// Done is closed when nothing is left to fetch.
func (r *Replay) Done() <-chan struct{} { return r.done }

// Stop drops what has not been fetched yet. What is under way goes on.
func (r *Replay) Stop() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.todo = nil
	r.endLocked()
}

// Stats returns how the replay has gone so far.
func (r *Replay) Stats() ReplayStats {
	r.s.mu.Lock()
	var uses []use
	for _, u := range r.seen {
		uses = append(uses, *u)
	}
	r.s.mu.Unlock()
	st := ReplayStats{Ranges: r.ranges, Bytes: r.bytes}
	for _, u := range uses {
		now := u.after
		if now == nil {
			n := u.layer.Uses()
			now = &n
		}
		st.Brought += now.Brought - u.before.Brought
		st.Read += now.Read - u.before.Read
		st.Missed += now.Missed - u.before.Missed
	}
	select {
	case <-r.done:
		st.Finished = true
	default:
	}
	return st
}

// meetLocked returns what is expected of a layer where the replay comes to it for the first time.
func (r *Replay) meetLocked(e *entry) []Range {
	if u := r.seen[e.digest]; u != nil && u.layer == e.layer {
		return nil
	}
	r.seen[e.digest] = &use{layer: e.layer, before: e.layer.Uses()}
	var expected []Range
	for _, g := range r.todo {
		if g.Layer == e.digest {
			expected = append(expected, g.Range)
		}
	}
	return expected
}

// advanceLocked takes away what lies before off of a range that is still to be fetched.
func (r *Replay) advanceLocked(g *part, off int64) {
	if g.Size -= off - g.Off; g.Size <= 0 {
		r.todo = slices.DeleteFunc(r.todo, func(o *part) bool { return o == g })
		r.endLocked()
		return
	}
	g.Off, g.first = off, time.Time{}
}

// dropLocked drops what is left of a layer, and its numbers stay what they are.
func (r *Replay) dropLocked(e *entry) {
	r.todo = slices.DeleteFunc(r.todo, func(g *part) bool { return g.Layer == e.digest })
	if u := r.seen[e.digest]; u != nil && u.after == nil && u.layer == e.layer {
		now := e.layer.Uses()
		u.after = &now
	}
	r.endLocked()
}

// endLocked ends a replay that has nothing left.
func (r *Replay) endLocked() {
	if len(r.todo) > 0 || r.running > 0 || r.ended {
		return
	}
	r.ended = true
	r.s.replays = slices.DeleteFunc(r.s.replays, func(o *Replay) bool { return o == r })
	close(r.done)
}

// Arrange makes of ranges in the order of access larger ones that are in about that order: those that a replay fetches.
func Arrange(ranges []Range) []Range {
	var all []Range
	most := int64(groupFirst)
	for len(ranges) > 0 {
		n, bytes := 0, int64(0)
		for n < len(ranges) && n < groupRanges && (n == 0 || bytes+ranges[n].Size <= most) {
			bytes += ranges[n].Size
			n++
		}
		all = append(all, merge(ranges[:n])...)
		ranges = ranges[n:]
		most = min(2*most, groupMost)
	}
	return all
}

// merge joins the ranges that are near each other; the results are in the order of the first of each.
func merge(group []Range) []Range {
	type placed struct {
		Range
		order int
	}
	var in, out []placed
	for i, g := range group {
		if g.Size > 0 && g.Off >= 0 && g.Off <= math.MaxInt64/4 && g.Size <= math.MaxInt64/4 {
			in = append(in, placed{g, i})
		}
	}
	slices.SortFunc(in, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Off, b.Off))
	})
	for _, g := range in {
		if n := len(out); n > 0 && out[n-1].Layer == g.Layer && g.Off-(out[n-1].Off+out[n-1].Size) <= mergeGap {
			last := &out[n-1]
			last.Size = max(last.Size, g.Off+g.Size-last.Off)
			last.order = min(last.order, g.order)
			continue
		}
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b placed) int { return cmp.Compare(a.order, b.order) })
	ranges := make([]Range, len(out))
	for i, g := range out {
		ranges[i] = g.Range
	}
	return ranges
}
