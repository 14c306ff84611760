package fetch

import (
	"cmp"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
)

// Range is a range of a layer's device.
type Range struct {
	Layer     digest.Digest
	Off, Size int64 // bytes; the end may lie behind the device's
}

const (
	// mergeGap is how far apart two ranges may be that are fetched as one, device bytes: less than
	// a span, so that it seldom brings one more.
	mergeGap = 256 << 10
	// So many ranges at a time are looked through for neighbours in the device, which go into one
	// request; beyond that they stay in their order. The first such group has groupFirst device
	// bytes, each other twice as many as the one before, up to groupMost.
	groupFirst = 8 << 20
	groupMost  = 64 << 20
	// groupRanges bounds a group as well: a small range still costs a span.
	groupRanges = 64
)

// Replay is a profile that is being fetched.
type Replay struct {
	s      *Scheduler
	ranges int
	done   chan struct{} // closed when nothing is left to fetch

	// Guarded by Scheduler.mu:
	todo    []*part                   // of known layers, what nothing is under way for; in order
	waiting map[digest.Digest][]*part // of layers that are not known
	running int                       // requests
	seen    map[digest.Digest]*use    // the layers that were found so far
}

// part is a range of a replay.
type part struct {
	Range
	order int
}

// use is what a replay has to do with one layer. Guarded by Scheduler.mu.
type use struct {
	layer  Layer      // nil: it was forgotten
	before layer.Uses // when the replay came to it
	after  layer.Uses // when the layer was forgotten
}

// usesMost is of how many replays, the latest, the numbers go on to change that a layer has.
const usesMost = 100

// end has the numbers stay what they are, and the layer be free to go.
func (u *use) end() {
	if u.layer != nil {
		u.layer, u.after = nil, u.layer.Uses()
	}
}

// ReplayStats says how a replay went. Bytes are those of the device, counted by spans, which are
// what is fetched.
type ReplayStats struct {
	Ranges   int   // that were given
	Brought  int64 // bytes that came because of the replay, or that a reader was quicker to ask for
	Read     int64 // of these, bytes in spans that readers have asked for
	Missed   int64 // reads that waited for something which no replay was going to bring, in the first minute
	Finished bool  // nothing is left to fetch
}

// Replay fetches the ranges, given in the order of their first access, about in that order. Those
// of layers that are not known yet wait for Add, until Close; those of a layer that is forgotten
// meanwhile are dropped, and so are those of layers of which wanted says no. (nil: all are wanted.)
func (s *Scheduler) Replay(ranges []Range, wanted func(digest.Digest) bool) *Replay {
	r := &Replay{
		s: s, ranges: len(ranges), done: make(chan struct{}),
		waiting: map[digest.Digest][]*part{}, seen: map[digest.Digest]*use{},
	}
	arranged := Arrange(ranges)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, g := range arranged {
		p := &part{Range: g, order: i}
		switch e := s.layers[g.Layer]; {
		case s.o.Fill == None || e != nil && e.stopped || wanted != nil && !wanted(g.Layer):
		case e == nil:
			r.waiting[g.Layer] = append(r.waiting[g.Layer], p)
		default:
			r.todo = append(r.todo, p)
		}
	}
	s.replays = append(s.replays, r)
	r.endLocked()
	s.signal()
	return r
}

// Close drops what is to be fetched of layers that are not known: they will not be because of what
// the replay belongs to. The rest goes on.
func (r *Replay) Close() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	clear(r.waiting)
	r.endLocked()
}

// Whole drops what replays wait to fetch of a layer that is not known: it lacks nothing.
func (s *Scheduler) Whole(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range slices.Clone(s.replays) {
		delete(r.waiting, d)
		r.endLocked()
	}
}

// knowLocked goes on with a layer that is known from now on.
func (r *Replay) knowLocked(d digest.Digest) {
	if parts := r.waiting[d]; len(parts) > 0 {
		delete(r.waiting, d)
		r.todo = append(r.todo, parts...)
		slices.SortStableFunc(r.todo, func(a, b *part) int { return cmp.Compare(a.order, b.order) })
	}
}

// Stats returns how the replay has gone so far.
func (r *Replay) Stats() ReplayStats {
	r.s.mu.Lock()
	var uses []use
	for _, u := range r.seen {
		uses = append(uses, *u)
	}
	r.s.mu.Unlock()
	st := ReplayStats{Ranges: r.ranges}
	for _, u := range uses {
		now := u.after
		if u.layer != nil {
			now = u.layer.Uses()
		}
		st.Brought += now.Brought - u.before.Brought
		st.Read += now.Read - u.before.Read
		st.Missed += now.Missed - u.before.Missed
	}
	st.Read = min(st.Read, st.Brought) // some of it may have been there before
	st.Finished = r.ended()
	return st
}

// ended says whether nothing is left to fetch.
func (r *Replay) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// meetLocked returns what is expected of a layer where the replay comes to it for the first time.
func (r *Replay) meetLocked(e *entry) []Range {
	if u := r.seen[e.digest]; u != nil && u.layer == e.layer {
		return nil
	}
	u := &use{layer: e.layer, before: e.layer.Uses()}
	r.seen[e.digest] = u
	if e.uses = append(e.uses, u); len(e.uses) > usesMost {
		e.uses[0].end()
		e.uses = slices.Delete(e.uses, 0, 1)
	}
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
	g.Off = off
}

// dropLocked drops what is left of a layer.
func (r *Replay) dropLocked(e *entry) {
	r.todo = slices.DeleteFunc(r.todo, func(g *part) bool { return g.Layer == e.digest })
	r.endLocked()
}

// endLocked ends a replay that has nothing left.
func (r *Replay) endLocked() {
	if len(r.todo) > 0 || len(r.waiting) > 0 || r.running > 0 || r.ended() {
		return
	}
	r.s.replays = slices.DeleteFunc(r.s.replays, func(o *Replay) bool { return o == r })
	close(r.done)
}

// Arrange makes of ranges in the order of access larger ones that are in about that order: those
// that a replay fetches.
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

// merge joins the ranges that are near each other; the results are in the order of the first of
// each.
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
