// Package layer is where source, index and store meet: it returns verified bytes
// at an offset of a layer's device.
//
// A read whose spans are all in the store is one pread. Any other joins, span by
// span, the fetches that are under way, and starts what is missing:
//
//	ReadAt ─▶ spans ─┬─ present ─────────────────────────────────────▶ pread
//	                 └─ missing ─▶ plan ─▶ blob range ─┬▶ decode, verify ─┬▶ readers
//	                                       windows ────┘                  └▶ store
//
// Neighbouring missing spans of one read are one blob request; their windows come at the same
// moment, from the store where it has them. Spans are decoded in parallel. A reader that waits
// copies from the decoded buffer; one that comes later from the flight until the store has the span,
// then from the store. Where the store has no room, the span is in the Budget's Spares for a while:
// readers are served even where the disk is full. The store tells when a layer's last span has come,
// and the layer Options.Complete.
// The body of a request is cut into spans as it arrives: who reads the first does not wait for the
// last.
//
// Fill and Fetch go the same way without bytes to copy; FUSE calls Fill before ReadAt. A Push may
// bring some spans, coded otherwise, without being asked: what wants one of them waits for it, and
// fetches it when the push is over without it. A layer of index.FromStart spans comes as one
// stream, from its beginning.
//
// What is fetched has a line.Priority: bytes in flight, decoded bytes and decoders go to the more
// urgent first, by the line.Budget, and a reader takes over what waits with less urgency. From the
// first fetch on that is not Demand and needs one, a layer's windows are here, all of them by one
// request.
//
// # Concurrency
//
// A span is fetched once however many readers want it: a flight has the readers
// that wait for it, a group the flights that one request, or one offer, brings and the
// goroutine that runs it. A reader that is interrupted leaves the group running: it ends when
// nobody has waited for any of it for some seconds, or at once if its request was not sent yet.
// The goroutines belong to the Layer; Close ends them and waits. Memory is bounded over all layers
// by the Budget.
//
// No error is kept: the next read tries again.
package layer

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// DefaultDeadline is how long a read waits if Options do not say.
const DefaultDeadline = 5 * time.Minute

// deviceAlign is the unit of a device's length: a tar block.
const deviceAlign = erofs.BlockSize

// Options of a Layer.
type Options struct {
	Blob    Source // the layer's compressed blob
	Windows Source // the layer's windows section; nil where the store has it, or no span needs one
	// Unpack returns the device's bytes, from the beginning on, of the blob that it is given: for a
	// layer whose spans are index.FromStart. Errors wrap index.ErrCorrupt where the blob's bytes
	// are wrong, and else are those of blob, or of ctx. May be nil.
	Unpack func(ctx context.Context, blob io.Reader) (io.ReadCloser, error)
	Push   Push // may be nil
	Budget *line.Budget
	// Deadline is how long one read waits for what cannot be fetched; 0:
	// DefaultDeadline.
	Deadline time.Duration
	// Complete is called when the last missing span has come in; again, where spans were lost or
	// evicted meanwhile and have come again. It must neither block nor call the layer. A layer that
	// is complete at New does not call it.
	Complete func()
	// Waited is called for each read that has to wait, with the device bytes [off, end) that it
	// wants. It must not block. May be nil.
	Waited func(off, end int64)
	// Unreadable is called for each read that the store did not answer though it has the bytes. It
	// must not block. May be nil.
	Unreadable func()
	Log        *slog.Logger // nil: slog.Default()
}

// Layer reads one layer's device. All methods may run in parallel, but Close.
type Layer struct {
	index      Index
	store      Store
	o          Options
	log        *slog.Logger
	name       string // the layer's digest
	deviceSize int64
	counters   counters
	expects    expectations
	section    section
	streams    streams
	refusals   refusals
	running    sync.WaitGroup // the groups' goroutines

	mu      sync.Mutex // never held over network or disk access
	closed  bool
	flights map[int]*flight // by span: those under way
}

// New returns a Layer that reads ix's device from st, which gets from
// o.Blob what it lacks. No I/O. It is paired with Close; st stays the caller's.
func New(ix Index, st Store, o Options) *Layer {
	if o.Budget == nil {
		o.Budget = line.New(0, 0)
	}
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	h := ix.Header()
	l := &Layer{
		index:      ix,
		store:      st,
		o:          o,
		log:        o.Log.With("layer", h.Layer.String()),
		name:       h.Layer.String(),
		deviceSize: h.DeviceSize,
		flights:    map[int]*flight{},
	}
	st.Know(ix.Spans, l.scratch, l.whole)
	return l
}

// whole is told by the store that the last missing span has come.
func (l *Layer) whole() {
	l.section.giveUp(l.o.Budget)
	if l.o.Complete != nil {
		l.o.Complete()
	}
}

// Close ends what is being fetched and waits for it. Reads have ended before, or
// end with an error; no read begins after it.
func (l *Layer) Close() {
	l.mu.Lock()
	l.closed = true
	for _, f := range l.flights {
		f.group.cancel(errClosed)
	}
	l.mu.Unlock()
	l.section.giveUp(l.o.Budget)
	l.running.Wait()
	l.o.Budget.Spares.Forget(l)
}

// Size is the length of the device in whole tar blocks, bytes. What lies beyond
// the tar's own length is zero.
func (l *Layer) Size() int64 {
	return (l.deviceSize + deviceAlign - 1) / deviceAlign * deviceAlign
}

// scratch lends memory of the Budget.
func (l *Layer) scratch(n int64) (buf []byte, free func()) {
	done := l.o.Budget.Compare()
	b := l.o.Budget.Buffer(n)
	return b.B, func() {
		b.Free()
		done()
	}
}
