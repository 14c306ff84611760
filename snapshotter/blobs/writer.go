package blobs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// askedWait is how long a writer waits for containerd to tell of its image and ask for the
	// first layer: it does so at the same moment, if the image is to be served at all.
	askedWait = 500 * time.Millisecond
	// deafTime is how long nobody waits again to be told, after it was in vain.
	deafTime = time.Minute
)

// pulls are the pulls whose layers may be served. The zero value is ready.
type pulls struct {
	mu      sync.Mutex
	all     []*pull       // the oldest first
	changed chan struct{} // closed by the next change; nil: nobody waits for it
	deaf    time.Time     // until then nobody waits to be told of a pull
}

// maxPulls is how many pulls are remembered.
const maxPulls = 64

// pull is one whose manifest has come.
type pull struct {
	layers  []digest.Digest        // lowest first
	asked   bool                   // containerd has asked for a layer to be served
	other   bool                   // that was waited for in vain: it is another snapshotter's pull
	decided map[digest.Digest]bool // the layer is served, or will not be
}

// change makes a change.
func (p *pulls) change(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// Expect tells of an image that containerd has begun to pull. Its layers may be asked for. What was
// known of them from earlier pulls does not count.
func (s *Store) Expect(layers []digest.Digest) {
	s.pulls.change(func() {
		for _, p := range s.pulls.all {
			for _, d := range layers {
				if slices.Contains(p.layers, d) {
					p.asked, p.other = false, false
					delete(p.decided, d)
				}
			}
		}
		s.pulls.all = append(s.pulls.all, &pull{layers: layers, decided: map[digest.Digest]bool{}})
		if len(s.pulls.all) > maxPulls {
			s.pulls.all = slices.Delete(s.pulls.all, 0, 1)
		}
	})
}

// Asked tells that containerd asks for a layer to be served: it has those below.
func (s *Store) Asked(d digest.Digest) {
	s.pulls.change(func() {
		for _, p := range s.pulls.all {
			if i := slices.Index(p.layers, d); i >= 0 {
				p.asked, p.other = true, false
				p.decide(p.layers[:i])
			}
		}
	})
}

// Decided tells that a layer is served, and claimed, or will not be; above: nor will those above it.
func (s *Store) Decided(d digest.Digest, above bool) {
	s.pulls.change(func() {
		for _, p := range s.pulls.all {
			i := slices.Index(p.layers, d)
			switch {
			case i < 0:
			case above:
				p.decide(p.layers[i:])
			default:
				p.decide(p.layers[i : i+1])
			}
		}
	})
}

func (p *pull) decide(layers []digest.Digest) {
	for _, d := range layers {
		p.decided[d] = true
	}
}

// state is what is known of a layer: whether there is a pull with it, whether such a pull's layers
// were asked for, may still be asked for, and whether it is decided what becomes of the layer.
func (p *pulls) stateLocked(d digest.Digest) (known, asked, hope, decided bool) {
	for _, one := range p.all {
		if slices.Contains(one.layers, d) {
			known, asked, hope = true, asked || one.asked, hope || !one.other
			decided = decided || one.decided[d]
		}
	}
	return known, asked, hope, decided
}

// await returns when it is known whether a layer is served, or nobody asks for its image.
func (s *Store) await(ctx context.Context, d digest.Digest) {
	unasked, undecided := time.NewTimer(askedWait), time.NewTimer(s.o.Stall)
	defer unasked.Stop()
	defer undecided.Stop()
	p := &s.pulls
	for {
		if _, ok := s.claims.get(d); ok {
			return
		}
		p.mu.Lock()
		known, asked, hope, decided := p.stateLocked(d)
		deaf := time.Now().Before(p.deaf)
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		late := undecided.C
		switch {
		case decided, known && !hope, !known && deaf:
			return
		case !asked:
			late = unasked.C
		}
		select {
		case <-changed:
		case <-late:
			if !asked {
				s.pulls.change(func() { p.giveUpLocked(d, known) })
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// giveUpLocked notes that it was waited in vain for a layer's pull to be told of, or asked for.
func (p *pulls) giveUpLocked(d digest.Digest, known bool) {
	if !known {
		p.deaf = time.Now().Add(deafTime)
	}
	for _, one := range p.all {
		if slices.Contains(one.layers, d) {
			one.other = !one.asked
		}
	}
}

// Writer implements content.Store. A client that fetches all blobs of an image, beside unpacking
// it, opens the writer of a layer's blob inside a transaction, without saying what it is going to
// write, and then asks how much is there. That question waits until it is known whether the layer
// is served. If so, all of the blob is there.
func (s *Store) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	d, ok := layerOf(o.Ref)
	if !ok {
		return w, nil
	}
	return &claimedWriter{Writer: w, ctx: ctx, store: s, layer: d}, nil
}

// Server serves containerd's content API.
func (s *Store) Server() contentapi.ContentServer {
	return server{contentserver.New(s), contentserver.New(written{s})}
}

// server writes to one store, and does all else with another.
type server struct {
	contentapi.ContentServer
	writes contentapi.ContentServer
}

// Write implements contentapi.ContentServer.
func (s server) Write(w contentapi.Content_WriteServer) error { return s.writes.Write(w) }

// written is a Store for whoever writes a blob: one that is claimed is not there. The service would
// throw away what was written.
type written struct{ *Store }

// Info implements content.Store.
func (w written) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	return w.Store.Store.Info(ctx, d)
}

// layerOf returns the layer that the name of a write is about: containerd ends it on layer-DIGEST.
func layerOf(ref string) (digest.Digest, bool) {
	_, name, ok := strings.Cut(ref, "/layer-")
	d := digest.Digest(name)
	return d, ok && d.Validate() == nil
}

// claimedWriter writes a blob that may turn out to be claimed. It is not used in parallel.
type claimedWriter struct {
	content.Writer
	ctx   context.Context
	store *Store
	layer digest.Digest
	stats int             // how often the status was asked for
	found *content.Status // of the claimed blob
}

// Status implements content.Writer. It is asked for the first time within the transaction.
func (w *claimedWriter) Status() (content.Status, error) {
	if w.found != nil {
		return *w.found, nil
	}
	status, err := w.Writer.Status()
	if w.stats++; err != nil || w.stats != 2 || status.Offset > 0 {
		return status, err
	}
	w.store.await(w.ctx, w.layer)
	c, ok := w.store.claims.get(w.layer)
	if !ok || c.size() != status.Total || w.store.Here(w.ctx, w.layer) {
		return status, nil
	}
	if ok, err := w.store.claims.keep(w.layer); err != nil {
		w.store.o.Log.Warn("a layer's blob is downloaded because it cannot be noted that it need "+
			"not be", "layer", w.layer, "err", err)
	} else if ok {
		status.Offset, status.Total, status.Expected = c.size(), c.size(), w.layer
		w.found = &status
	}
	return status, nil
}

// Digest implements content.Writer.
func (w *claimedWriter) Digest() digest.Digest {
	if w.found != nil {
		return w.layer
	}
	return w.Writer.Digest()
}

// Write implements content.Writer.
func (w *claimedWriter) Write(p []byte) (int, error) {
	w.found = nil // the client knows better
	return w.Writer.Write(p)
}

// Truncate implements content.Writer. A commit begins with it where its client has not seen that
// all of the blob is there.
func (w *claimedWriter) Truncate(size int64) error {
	if w.found != nil && size == 0 {
		return nil
	}
	w.found = nil
	return w.Writer.Truncate(size)
}

// Commit implements content.Writer.
func (w *claimedWriter) Commit(
	ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt,
) error {
	if w.found == nil {
		return w.Writer.Commit(ctx, size, expected, opts...)
	}
	if expected != "" && expected != w.layer || size > 0 && size != w.found.Total {
		return fmt.Errorf("blob %s of %d bytes is not %s of %d bytes: %w", expected, size, w.layer,
			w.found.Total, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("blob %s: %w", w.layer, errdefs.ErrAlreadyExists)
}
