// Package line says who may use what all layers of a node share, the network, memory and cores, and
// brings over the network what it lets through.
//
// # The data's way
//
// A request for a range of a blob is admitted, sent, and read as it comes:
//
//	Budget.Admit ─▶ Grant.Request ─▶ one or more connections ─▶ pieces ─▶ Request.Get
//	  Host: flow
//	  Meter: Fetch
//
// The bytes are used in place, where they came. Decode is the Meter for what they are decoded to,
// Decoders the one for the cores, which Starts has fills leave to containers that start, Buffer
// lends the memory itself, and Spares keeps a little of what the disk does not take. The package
// knows neither layers nor registries: an Opener asks (package layer's, of a layer's source), and a
// Host is whatever has one name.
//
// What is asked for has a Priority. Demand goes first, and a part of each Meter is kept for it.
// An Urgency is a Priority that can rise: a reader takes over what was asked for ahead of it. What
// the answers of one Host tell (its round trip, how many bytes it takes to fill the way to it)
// counts for that Host alone.
//
// # Concurrency
//
// Budget, Host, Meter, Urgency, Spares and Starts are safe for parallel use, and so is Request.Get.
// A Grant is one goroutine's. A Request has a goroutine for each connection; Close ends them and
// waits.
package line

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of New, bytes.
const (
	DefaultFetchBytes  = 24 << 20
	DefaultDecodeBytes = 24 << 20
)

// frameBytes is the size of Budget.Frames.
const frameBytes = 16 << 20

// ErrTooLarge is wrapped where something needs more than a Meter has in all.
var ErrTooLarge = errors.New("larger than the memory budget")

// Priority says who waits for a fetch.
type Priority uint8

// The priorities, the most urgent first.
const (
	Demand     Priority = iota // a reader waits
	Ahead                      // a reader is on its way to it
	Replay                     // an earlier start of the image has read it
	Near                       // a reader has waited for what lies before it
	Background                 // nobody is known to want it
	priorities
)

// Budget bounds what all that use it take for fetching and decoding, says who goes first, and lends
// the buffers.
//
// A request holds its share of Fetch from before it is sent until its bytes are decoded; what is
// decoded holds its share of Decode from then until it is on disk, and one of
// Decoders while it is decoded. Near and Background have their bytes admitted by the Host's flow
// before all that. Whoever waits for one of these holds only what comes before it, and each takes
// what it needs at once: so they cannot block each other for good.
type Budget struct {
	Fetch    *Meter // bytes of blobs that are asked for
	Decode   *Meter // bytes that are decoded
	Decoders *Meter // decoders at work
	Windows  *Meter // bytes of windows sections that are kept
	Frames   *Meter // bytes of frames that were asked for before a layer wanted them
	Spares   Spares
	Starts   *Starts
	// Waits is told of each read that waits, and calls over when it has ended. nil: nobody is.
	Waits func(of string, off, n int64) (over func())

	readers  readers
	hosts    hosts
	compares chan struct{} // a token a comparison
	pool     pool
	lines    atomic.Int64 // parts of striped requests that are under way
}

// New returns a Budget of so many bytes for blob ranges in flight and for what is decoded; 0 stands
// for DefaultFetchBytes and DefaultDecodeBytes.
func New(fetch, decode int64) *Budget {
	if fetch == 0 {
		fetch = DefaultFetchBytes
	}
	if decode == 0 {
		decode = DefaultDecodeBytes
	}
	b := &Budget{
		Fetch:    newMeter(fetch),
		Decode:   newMeter(decode),
		Decoders: newMeter(int64(runtime.GOMAXPROCS(0))),
		Windows:  &Meter{size: fetch / 4, free: fetch / 4},
		Frames:   &Meter{size: frameBytes, free: frameBytes},
		Spares:   Spares{limit: decode / 4},
		readers:  readers{since: time.Now()},
		compares: make(chan struct{}, ComparesMost),
	}
	b.Starts = &Starts{readers: &b.readers, times: workTimes}
	return b
}

// pauseMost is how long decoding pauses at the most.
const pauseMost = 250 * time.Millisecond

// FreeCores keeps the cores free of decoding that no reader waits for until release is called, but
// for 250 ms at the most: for what takes a moment if it has them, and makes many wait if not.
func (b *Budget) FreeCores() (release func()) { return b.Decoders.pause(pauseMost) }

// ComparesMost is how many spans on disk are compared with their digests at a time, because readers
// come in any number and each comparison takes a buffer.
const ComparesMost = 24

// Compare waits until one more span may be compared, which ends with done.
func (b *Budget) Compare() (done func()) {
	b.compares <- struct{}{}
	return func() { <-b.compares }
}

// ReaderWaits says that a read, of n bytes from off on of something, waits for the network until
// goes is called.
func (b *Budget) ReaderWaits(of string, off, n int64) (goes func()) {
	b.readers.change(1, 1)
	over := func() {}
	if b.Waits != nil {
		over = b.Waits(of, off, n)
	}
	return func() {
		b.readers.change(-1, 0)
		over()
	}
}

// readers is how many reads wait.
type readers struct {
	mu      sync.Mutex
	waiting int
	since   time.Time // when the first of them came, or the last one went
}

// change adds n; where that makes it as many as turn, it is noted when.
func (r *readers) change(n, turn int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting += n; r.waiting == turn {
		r.since = time.Now()
	}
}

// unwaited returns for how long none has waited; 0: one does.
func (r *readers) unwaited() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting > 0 {
		return 0
	}
	return time.Since(r.since)
}

// Grant is what was admitted of a Budget. The zero value is of nothing.
type Grant struct {
	budget *Budget
	host   *Host
	filled bool // with it the line is as full as it may be
	shared bool // several requests use it

	// Guarded by the mu of the Request that uses it.
	flow   int64 // bytes of the line
	fetch  int64 // bytes of memory
	coming int64 // of these, those for what has not come
}

// Admit waits until n bytes may be asked for. With an error the grant is of nothing.
func (b *Budget) Admit(ctx context.Context, h *Host, n int64, u *Urgency) (*Grant, error) {
	g := &Grant{budget: b, host: h}
	if prio := u.Priority(); prio >= Near {
		filled, err := h.flow.acquire(ctx, n, prio)
		if err != nil {
			return g, err
		}
		g.flow, g.filled = n, filled
	}
	if err := b.Fetch.Acquire(ctx, n, u); err != nil {
		g.Close()
		return g, err
	}
	g.fetch, g.coming = n, n
	return g, nil
}

// Share says that several requests use the grant, one after the other: nothing of it is lent.
func (g *Grant) Share() { g.shared = true }

// arrived gives back the part of the line that n bytes took.
func (g *Grant) arrived(n int64) {
	g.coming = max(g.coming-n, 0)
	if n = min(n, g.flow); n > 0 {
		g.flow -= n
		g.host.flow.arrived(n)
	}
}

// give gives back the memory of n bytes.
func (g *Grant) give(n int64) {
	if n > 0 {
		g.fetch -= n
		g.budget.Fetch.Release(n)
	}
}

// Close gives back what is left. The requests that use it are closed.
func (g *Grant) Close() {
	g.arrived(g.flow)
	g.give(g.fetch)
}
