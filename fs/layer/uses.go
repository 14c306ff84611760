package layer

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// missFor is how long after the first Expect a read counts as missed.
const missFor = time.Minute

// Uses says what became of the spans that a replay brings. Bytes are those of the device, in whole
// spans.
type Uses struct {
	Brought int64 // in spans that were expected and have come, whatever has become of them
	Read    int64 // of these, in spans that readers have asked for
	// Missed is reads that waited for spans that nobody expected, in the minute after the first
	// Expect.
	Missed int64
}

// expectation is the spans that a replay brings, a bit for each.
type expectation struct {
	since  time.Time
	all    []atomic.Uint64
	unread []atomic.Uint64 // of all, those that no reader has asked for
	came   []atomic.Uint64 // of all, those that were there when noted
	left   atomic.Int64    // how many bits unread has
	read   atomic.Int64    // bytes
	missed atomic.Int64    // reads
}

// expectations makes a layer's expectation when it is needed.
type expectations struct {
	made sync.Mutex // held while it is made
	now  atomic.Pointer[expectation]
}

// Expect says that a replay is going to fetch a range, which may reach beyond the device: from now
// on, Uses counts what becomes of it.
func (l *Layer) Expect(off, n int64) error {
	spans, err := l.index.Spans()
	if err != nil {
		return err
	}
	x := l.expects.get(len(spans))
	first, last := spans.Cut(off, off+n)
	for i := first; i < last; i++ {
		bit := uint64(1) << (i & 63)
		if x.all[i>>6].Or(bit)&bit == 0 {
			x.left.Add(1)
			x.unread[i>>6].Or(bit)
		}
	}
	return nil
}

func (e *expectations) get(spans int) *expectation {
	e.made.Lock()
	defer e.made.Unlock()
	if x := e.now.Load(); x != nil {
		return x
	}
	words := (spans + 63) / 64
	x := &expectation{since: time.Now()}
	for _, set := range []*[]atomic.Uint64{&x.all, &x.unread, &x.came} {
		*set = make([]atomic.Uint64, words)
	}
	e.now.Store(x)
	return x
}

// Uses returns the numbers of what Expect has named so far.
func (l *Layer) Uses() Uses {
	x := l.expects.now.Load()
	spans, err := l.index.Spans()
	if x == nil || err != nil {
		return Uses{}
	}
	l.noteCome()
	u := Uses{Read: x.read.Load(), Missed: x.missed.Load()}
	for i := range spans {
		// What was read has come, wherever it was read from.
		w, bit := i>>6, uint64(1)<<(i&63)
		if x.has(i) && (x.came[w].Load()|^x.unread[w].Load())&bit != 0 {
			u.Brought += spans[i].Size
		}
	}
	return u
}

// noteCome notes which of the spans that were expected are there, before some of them go.
func (l *Layer) noteCome() {
	x := l.expects.now.Load()
	if x == nil {
		return
	}
	for w := range x.all {
		for word := x.all[w].Load() &^ x.came[w].Load(); word != 0; word &= word - 1 {
			if i := w<<6 + bits.TrailingZeros64(word); l.store.Present(i) {
				x.came[w].Or(1 << (i & 63))
			}
		}
	}
}

func (x *expectation) has(i int) bool { return x.all[i>>6].Load()&(1<<(i&63)) != 0 }

// touched notes that a reader asks for device bytes [off, end), for eviction and for Uses.
func (l *Layer) touched(off, end int64) {
	spans, err := l.index.Spans()
	if err != nil {
		return // the read says so
	}
	first, last := spans.Cut(off, end)
	l.store.Touched(first, last)
	x := l.expects.now.Load()
	if x == nil || x.left.Load() == 0 {
		return
	}
	for i := first; i < last; i++ {
		bit := uint64(1) << (i & 63)
		if x.unread[i>>6].Load()&bit != 0 && x.unread[i>>6].And(^bit)&bit != 0 {
			x.left.Add(-1)
			x.read.Add(spans[i].Size)
		}
	}
}

// missed notes that a reader waits for the spans.
func (l *Layer) missed(spans []int) {
	x := l.expects.now.Load()
	if x == nil || time.Since(x.since) > missFor {
		return
	}
	for _, i := range spans {
		if !x.has(i) {
			x.missed.Add(1)
			return
		}
	}
}

// Evict takes spans out of the store, and returns how many bytes of the device that was. They are
// fetched again when somebody reads them.
func (l *Layer) Evict(spans []int) (int64, error) {
	l.noteCome()
	return l.store.Evict(spans)
}

// Empty takes all spans out of the store at once, by a new device.
func (l *Layer) Empty() error {
	l.noteCome()
	return l.store.Empty()
}
