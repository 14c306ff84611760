// Package copies pushes the copies of what starts read, which lie beside published profiles, to the
// layers that they are of.
//
// # The data's way
//
//	fs/pull ── Begin ─▶ Push ── a few large requests, in order ─▶ frames ─┬─▶ Layer.Offer
//	                                                                      └─▶ kept until Feed.Open
//
// A pull begins a push before it has the index, and so before there are layers. Frames are kept
// until their layer opens; all frames of the node, kept, on their way or being decoded, have at
// most what Budget.Frames has, and where there is no room nothing more is asked for. A layer that
// is open decodes and verifies what it is offered, and drops what it does not lack.
//
// # The states of a frame
//
//	ahead   will be asked for            what is fetched ahead of readers waits for it
//	sent    its request is under way     readers wait for it too
//	gone    offered, kept, or left out   nobody waits for it
//
// A push is over when all has come, or something does not come or is wrong: from then on nobody
// waits for it, and layers fetch what they lack. It ends as well when no layer has taken anything
// for a while, and with its pull.
//
// # Concurrency
//
// All methods may run in parallel but Run, which is called once for each push. Locks are held in
// the order Layer, Push; none is held over the network.
package copies

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/remote"
)

// Copies are the copies that are being pushed.
type Copies struct {
	budget *line.Budget
	log    *slog.Logger

	mu  sync.Mutex
	all []*Push
}

// New returns no copies yet.
func New(b *line.Budget, log *slog.Logger) *Copies { return &Copies{budget: b, log: log} }

// Copy is frames of a copy, in its order, and the image beside which it lies.
type Copy struct {
	Image      *remote.Image
	Repository string
	Windows    digest.Digest // of the index that the spans are of
	Blob       ocispec.Descriptor
	Frames     []published.Frame
}

// Layer takes frames. *layer.Layer is one.
type Layer interface {
	// Lacks says whether a span is neither here nor on its way by another request.
	Lacks(span int) bool
	// Offer takes a span's frames, in the values of ctx alone. done is called when they are not
	// used any more, with what was wrong.
	Offer(ctx context.Context, span int, frames []byte, done func(wrong error))
}

var (
	_ Layer      = (*layer.Layer)(nil)
	_ layer.Push = (*Feed)(nil)
)

// Feed is what is pushed to one layer. Copies.Feed makes it.
type Feed struct {
	all   *Copies
	push  *Push // nil: nothing
	layer digest.Digest
}

// Feed returns what is pushed to a layer that is about to be opened: frames of the copy of its
// index, in a repository that vouches for that. Pair it with Open.
func (c *Copies) Feed(rec *store.Record) *Feed {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &Feed{all: c, layer: rec.Layer}
	for _, p := range c.all {
		if p.has(rec.Layer) && p.Windows == rec.Windows.Blob && proof.Vouches(rec, p.Repository) {
			f.push = p
			break
		}
	}
	return f
}

// Open has the layer be offered what is kept for it, and what comes later.
func (f *Feed) Open(l Layer) {
	f.all.mu.Lock()
	all := slices.Clone(f.all.all)
	f.all.mu.Unlock()
	for _, p := range all {
		if p == f.push {
			p.open(f.layer, l)
		} else {
			p.open(f.layer, nil)
		}
	}
}

// Coming implements layer.Push.
func (f *Feed) Coming(span int, sent bool) bool {
	return f.push != nil && f.push.coming(spanOf{f.layer, span}, sent)
}

// Over implements layer.Push.
func (f *Feed) Over() <-chan struct{} { return f.push.over }
