package profile

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Merge returns the union of profiles of one image: what any of them reads, ordered by the median
// of the times of first access, the rare ranges at the end (see Profile.Rare). nil ones are left
// out; of none it returns nil. The manifest is the first one's.
func Merge(profiles ...*Profile) *Profile {
	var out *Profile
	var edges []edge
	for _, p := range profiles {
		if p == nil {
			continue
		}
		if out == nil {
			out = &Profile{Manifest: p.Manifest}
		}
		out.Runs = min(out.Runs+p.Runs, maxRuns)
		for _, r := range p.Ranges {
			edges = append(edges, edge{r.Layer, r.Off, r, true}, edge{r.Layer, r.End(), r, false})
		}
	}
	if out == nil {
		return nil
	}
	slices.SortFunc(edges, func(a, b edge) int {
		return cmp.Or(strings.Compare(string(a.layer), string(b.layer)), cmp.Compare(a.off, b.off))
	})
	// Between two edges of a layer the same ranges are open.
	var open []Range
	for i, e := range edges {
		if len(open) > 0 && edges[i-1].off < e.off {
			out.join(segment(e.layer, edges[i-1].off, e.off, open, out.Runs))
		}
		if e.start {
			open = append(open, e.r)
			continue
		}
		j := slices.Index(open, e.r)
		open = slices.Delete(open, j, j+1)
	}
	out.sort()
	return out
}

// edge is a start or an end of a range.
type edge struct {
	layer digest.Digest
	off   int64
	r     Range
	start bool
}

// segment is a piece of a layer that all of the open ranges hold.
func segment(layer digest.Digest, off, end int64, open []Range, runs int) Range {
	s := Range{Layer: layer, Off: off, Size: end - off}
	for _, r := range open {
		s.Runs += r.Runs
	}
	s.At = median(open, s.Runs)
	s.Runs = min(s.Runs, runs)
	return s
}

// median returns the lower weighted median of the ranges' times; weight is the sum of their runs.
func median(ranges []Range, weight int) time.Duration {
	byTime := slices.SortedFunc(slices.Values(ranges), func(a, b Range) int {
		return cmp.Compare(a.At, b.At)
	})
	for _, r := range byTime {
		if weight -= 2 * r.Runs; weight <= 0 {
			return r.At
		}
	}
	return 0
}

// join appends a piece of a layer, whose pieces come in the order of their offsets: to the last
// range, where the two are one, that is neighbours, read by as many runs, at about the same time.
func (p *Profile) join(s Range) {
	if n := len(p.Ranges); n > 0 {
		last := &p.Ranges[n-1]
		if last.Layer == s.Layer && last.End() == s.Off && last.Runs == s.Runs &&
			(last.At-s.At).Abs() <= together {
			last.Size += s.Size
			last.At = min(last.At, s.At)
			return
		}
	}
	p.Ranges = append(p.Ranges, s)
}

// Update returns what is to be kept of an older profile, which may be nil, and a newer one: their
// union. Above MaxRuns runs each counts half, again and again, so that old starts fade.
func Update(old, p *Profile) *Profile {
	merged := Merge(old, p)
	return merged.aged(MaxRuns).Trim(MaxRanges)
}

// aged returns the profile with runs that count half, as often as it takes to have at most limit of
// them. What too few of them read is forgotten. So old starts fade, and a range that most starts
// read stays.
func (p *Profile) aged(limit int) *Profile {
	out := &Profile{Manifest: p.Manifest, Runs: p.Runs, Ranges: slices.Clone(p.Ranges)}
	for limit = max(limit, 1); out.Runs > limit; {
		out.Runs /= 2
		for i := range out.Ranges {
			out.Ranges[i].Runs /= 2
		}
		out.Ranges = slices.DeleteFunc(out.Ranges, func(r Range) bool { return r.Runs == 0 })
	}
	out.sort()
	return out
}

// Trim returns the profile without those of its last ranges that exceed the limit. It may return p
// itself.
func (p *Profile) Trim(ranges int) *Profile {
	if len(p.Ranges) <= ranges {
		return p
	}
	return &Profile{Manifest: p.Manifest, Runs: p.Runs, Ranges: slices.Clone(p.Ranges[:ranges])}
}
