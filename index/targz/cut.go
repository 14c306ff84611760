package targz

import (
	"math"

	"github.com/mica-snapshotter/mica/index/inflate"
	"github.com/mica-snapshotter/mica/index/window"
)

// A span begins at a block between these distances from the last cut, or at a
// member between firstMember and maxSpan.
func minSpan(size int64) int64     { return size * 3 / 4 }
func maxSpan(size int64) int64     { return size * 5 / 4 }
func firstMember(size int64) int64 { return size / 2 }

// minGap is the least distance of two candidates, in device bytes. It bounds
// how many of them are live at a time.
const minGap = 16 << 10

// place is where a span can begin.
type place struct {
	device int64 // offset in the device
	blob   int64 // offset in the blob of the byte that holds the first bit
	bit    uint8
	member bool // a member's header starts there
}

// candidate is a place and what a span from there on needs.
type candidate struct {
	place
	window [window.Size]byte
	n      int // bytes of window: fewer near a member's start
	refs   window.Set
	cost   int
}

// cutter chooses where spans begin.
//
// A member's start in range is best, as it needs no window: the last one up to
// the size aimed at, or else the first one after it. Otherwise each block's start
// in range is a candidate, at least minGap apart; while the next WindowSize bytes
// are decoded the candidate is live and collects what they refer to before it.
// The one with the smallest window wins. Where no block starts in range, the
// first one after it is taken.
type cutter struct {
	size int64
	// start is the device offset of the last cut.
	start int64
	live  []*candidate // oldest first
	best  *candidate   // of those that are not live any more
	free  []*candidate // not needed any more
	// nowhere: there was a stretch without a place, so that none is looked for any more.
	nowhere bool
}

// wants reports whether a block or member that starts at a device offset is a
// candidate.
func (c *cutter) wants(device int64, member bool) bool {
	d := device - c.start
	switch {
	case c.nowhere:
		return false
	case member:
		return d >= firstMember(c.size)
	case c.best != nil && c.best.member:
		return false
	case d > maxSpan(c.size):
		return c.best == nil && len(c.live) == 0
	}
	return d >= minSpan(c.size) && (len(c.live) == 0 || device-c.live[len(c.live)-1].device >= minGap)
}

// add makes a candidate of a place that is wanted. history is what lies before
// it that deflate can refer to.
func (c *cutter) add(p place, history []byte) {
	var k *candidate
	if n := len(c.free); n > 0 {
		k, c.free = c.free[n-1], c.free[:n-1]
	} else {
		k = new(candidate)
	}
	k.place = p
	k.refs.Reset()
	if p.member {
		k.cost = 0
		c.settle(k)
		return
	}
	k.n = copy(k.window[:], history[max(0, len(history)-window.Size):])
	c.live = append(c.live, k)
}

// refer says what the bytes from the youngest live candidate on refer to before
// it.
func (c *cutter) refer(refs []inflate.Ref) {
	if len(c.live) == 0 {
		return
	}
	base := c.live[len(c.live)-1].device
	for _, k := range c.live {
		// What lies between an older candidate and the youngest is no
		// part of its window.
		d := int32(base - k.device)
		for _, r := range refs {
			if r.Back > d {
				k.refs.Add(int(r.Back-d), int(min(r.Size, r.Back-d)))
			}
		}
	}
}

// advance says that the device is decoded up to an offset, and returns the
// candidate where a span begins once that is decided. It belongs to the caller.
func (c *cutter) advance(device int64) *candidate {
	for len(c.live) > 0 && device-c.live[0].device >= window.Size {
		c.settleOldest()
	}
	switch {
	case c.best == nil || device == c.best.device:
		return nil
	case c.best.member && device-c.start <= c.size:
		return nil
	case !c.best.member && (len(c.live) > 0 || device-c.start < maxSpan(c.size)):
		return nil
	}
	cut := c.best
	c.best = nil
	for _, k := range c.live {
		c.drop(k)
	}
	c.live = c.live[:0]
	c.start = cut.device
	return cut
}

// endMember says that nothing behind refers to what lies before.
func (c *cutter) endMember() {
	for len(c.live) > 0 {
		c.settleOldest()
	}
}

// settleOldest takes a candidate whose window is known into the competition.
func (c *cutter) settleOldest() {
	k := c.live[0]
	c.live = append(c.live[:0], c.live[1:]...)
	k.cost = k.refs.Len() + 2*k.refs.Runs()
	c.settle(k)
}

func (c *cutter) settle(k *candidate) {
	switch {
	case c.best == nil:
	case k.member: // the later one
	case c.best.member || c.best.cost <= k.cost:
		c.drop(k)
		return
	}
	if c.best != nil {
		c.drop(c.best)
	}
	c.best = k
}

func (c *cutter) drop(k *candidate) { c.free = append(c.free, k) }

// sure is the device offset before which no span begins any more.
func (c *cutter) sure() int64 {
	sure := int64(math.MaxInt64)
	if c.best != nil {
		sure = c.best.device
	}
	if len(c.live) > 0 {
		sure = min(sure, c.live[0].device)
	}
	return sure
}
