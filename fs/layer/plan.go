package layer

import (
	"fmt"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

const (
	// maxRequest is the largest blob range that is asked for in one request,
	// bytes, where it is more than one span.
	maxRequest = 8 << 20
	// maxGap is how many bytes nobody asked for a request may bring between two
	// spans: what a further request costs in round trips is more than these.
	maxGap = 64 << 10
)

const (
	// aheadRequest is the largest request for what a reader is on its way to, bytes: small enough
	// to come over several connections at once, each of which begins slowly.
	aheadRequest = 2 << 20
	// replayRequest is that of a replay. Requests cost whoever answers them: the reference registry
	// reads 4 MiB for each.
	replayRequest = 4 << 20
)

// request is how many bytes of the blob one request of a priority brings at most, where it is more
// than one span.
func (l *Layer) request(prio line.Priority) int64 {
	n := int64(aheadRequest)
	switch prio {
	case line.Demand:
		n = maxRequest
	case line.Replay:
		n = replayRequest
	case line.Near, line.Background:
		n = l.host().FillRequest()
	}
	return min(n, l.o.Budget.Fetch.Size())
}

// extent is neighbouring spans that one request brings.
type extent struct{ first, n int }

// byteRange is a range of bytes in a blob.
type byteRange struct{ from, to int64 }

func (r byteRange) size() int64 { return r.to - r.from }

// blobRange is where the extent lies in the blob. Neighbours can share a byte.
func (e extent) blobRange(spans index.Spans) byteRange {
	first, last := &spans[e.first], &spans[e.first+e.n-1]
	return byteRange{first.Blob, last.Blob + last.BlobSize}
}

// windowRange is where the windows that the extent needs lie in the windows
// section; empty where it needs none.
func (e extent) windowRange(spans index.Spans) byteRange {
	var r byteRange
	for i := e.first; i < e.first+e.n; i++ {
		w := spans[i].Window
		switch {
		case w.Size == 0:
		case r.to == 0:
			r = byteRange{w.Off, w.Off + w.Size}
		default:
			r = byteRange{min(r.from, w.Off), max(r.to, w.Off+w.Size)}
		}
	}
	return r
}

// plan divides missing spans, in rising order, into requests: neighbours go
// together as long as their ranges in blob and windows do, and request bytes
// are enough. What a demand brings beyond what was asked for is decided here.
func plan(spans index.Spans, missing []int, request int64) []extent {
	var all []extent
	for _, i := range missing {
		if n := len(all); n > 0 && i == all[n-1].first+all[n-1].n {
			e := extent{all[n-1].first, all[n-1].n + 1}
			if e.joins(spans, request) {
				all[n-1] = e
				continue
			}
		}
		all = append(all, extent{i, 1})
	}
	return all
}

// joins says whether the extent's last span fits to the ones before it.
func (e extent) joins(spans index.Spans, request int64) bool {
	last, before := &spans[e.first+e.n-1], &spans[e.first+e.n-2]
	if spans.FromStart() {
		return last.Device+last.Size-spans[e.first].Device <= request
	}
	if gap := last.Blob - (before.Blob + before.BlobSize); gap > maxGap || gap < -1 {
		return false
	}
	w := e.windowRange(spans)
	b := extent{e.first, e.n - 1}.windowRange(spans)
	// The index is not trusted to have the windows in order.
	if w.size()-b.size()-last.Window.Size > maxGap {
		return false
	}
	return e.blobRange(spans).size()+w.size() <= request
}

// affordable says whether a span fits into the budget by itself.
func affordable(b *line.Budget, s *index.Span) error {
	if need, most := s.BlobSize+s.Window.Size, b.Fetch.Size(); need > most {
		return fmt.Errorf("%w: %d bytes of blob and window, budget %d", line.ErrTooLarge, need, most)
	}
	if most := b.Decode.Size(); s.Size > most {
		return fmt.Errorf("%w: %d bytes decoded, budget %d", line.ErrTooLarge, s.Size, most)
	}
	return nil
}

// firstMissing returns the first of spans [i, last) that the store does not have, or last.
func (l *Layer) firstMissing(i, last int) int {
	for i < last && l.store.Present(i) {
		i++
	}
	return i
}

// Missing is neighbouring spans that the store does not have.
type Missing struct {
	Off, Size int64 // in the device, bytes; whole spans
	Bytes     int64 // in the blob
}

// Next returns the first missing spans, neighbours, that hold any of the device's bytes [off, end),
// no more than one request of that priority brings. Size 0: nothing is missing. What is on its way
// counts as missing; Fetch joins it.
func (l *Layer) Next(off, end int64, prio line.Priority) (Missing, error) {
	spans, err := l.index.Spans()
	if err != nil {
		return Missing{}, err
	}
	i, last := spans.Cut(off, end)
	if i = l.firstMissing(i, last); i == last {
		return Missing{}, nil
	}
	e, request := extent{i, 1}, l.request(prio)
	for i++; i < last && !l.store.Present(i); i++ {
		longer := extent{e.first, e.n + 1}
		if !longer.joins(spans, request) {
			break
		}
		e = longer
	}
	first, final, at := &spans[e.first], &spans[e.first+e.n-1], e.blobRange(spans)
	size := final.Device + final.Size - first.Device
	next := Missing{Off: first.Device, Size: size, Bytes: at.size()}
	if spans.FromStart() {
		h := l.index.Header() // about
		next.Bytes = int64(float64(size) / float64(max(h.DeviceSize, 1)) * float64(h.LayerSize))
	}
	return next, nil
}
