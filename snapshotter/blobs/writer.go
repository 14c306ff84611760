package blobs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// askedWait is how long a writer waits for containerd to tell of its image and ask for the first
	// layer: it does so at the same moment, if the image is to be served at all.
	askedWait = 100 * time.Millisecond
	// deafTime is how long nobody waits again to be told, after it was in vain.
	deafTime = time.Minute
)

// pulls are the pulls whose layers may be served, by the layers' blobs. The zero value is ready.
type pulls struct {
	mu     sync.Mutex
	layers map[digest.Digest]*pull
	order  []*pull       // the oldest first
	came   chan struct{} // closed by the next Expect; nil: nobody waits for it
	deaf   time.Time     // until then nobody does
}

// maxPulls is how many pulls are remembered.
const maxPulls = 64

// pull is one whose manifest has come.
type pull struct {
	layers []digest.Digest
	asked  chan struct{} // closed: containerd has asked for a layer to be served
	once   sync.Once
	other  atomic.Bool // a writer has waited for that in vain: it is another snapshotter's pull

	mu      sync.Mutex
	decided map[digest.Digest]chan struct{} // closed: the layer is served and claimed, or will not be
}

// Expect tells of an image that containerd has begun to pull. Its layers may be asked for.
func (s *Store) Expect(layers []digest.Digest) {
	p := &pull{layers: layers, asked: make(chan struct{}), decided: map[digest.Digest]chan struct{}{}}
	for _, d := range layers {
		p.decided[d] = make(chan struct{})
	}
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	if s.pulls.layers == nil {
		s.pulls.layers = map[digest.Digest]*pull{}
	}
	if s.pulls.order = append(s.pulls.order, p); len(s.pulls.order) > maxPulls {
		s.pulls.forgetLocked(s.pulls.order[0])
		s.pulls.order = s.pulls.order[1:]
	}
	for _, d := range layers {
		s.pulls.layers[d] = p
	}
	if s.pulls.came != nil {
		close(s.pulls.came)
		s.pulls.came = nil
	}
}

func (p *pulls) forgetLocked(old *pull) {
	for _, d := range old.layers {
		if p.layers[d] == old {
			delete(p.layers, d)
		}
	}
}

func (p *pulls) of(d digest.Digest) *pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.layers[d]
}

// Asked tells that containerd asks for a layer to be served.
func (s *Store) Asked(d digest.Digest) {
	if p := s.pulls.of(d); p != nil {
		p.once.Do(func() { close(p.asked) })
		p.other.Store(false)
	}
}

// Decided tells that a layer is served, and claimed, or that containerd has been told to unpack it
// and those above.
func (s *Store) Decided(d digest.Digest, served bool) {
	p := s.pulls.of(d)
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	above := false
	for _, l := range p.layers {
		if above = above || l == d; l == d || above && !served {
			if c := p.decided[l]; c != nil {
				close(c)
				p.decided[l] = nil
			}
		}
	}
}

// find returns the pull that a layer belongs to. It waits for it to be told of; nil: it was not.
func (p *pulls) find(ctx context.Context, d digest.Digest, late <-chan time.Time) *pull {
	for {
		p.mu.Lock()
		found := p.layers[d]
		if found != nil || time.Now().Before(p.deaf) {
			p.mu.Unlock()
			return found
		}
		if p.came == nil {
			p.came = make(chan struct{})
		}
		came := p.came
		p.mu.Unlock()
		select {
		case <-came:
		case <-late:
			p.mu.Lock()
			p.deaf = time.Now().Add(deafTime)
			p.mu.Unlock()
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// await returns when it is known whether a layer is served, or nobody asks for its image.
func (s *Store) await(ctx context.Context, d digest.Digest) {
	late := time.NewTimer(askedWait)
	defer late.Stop()
	p := s.pulls.find(ctx, d, late.C)
	if p == nil || p.other.Load() {
		return
	}
	select {
	case <-p.asked:
	case <-late.C:
		p.other.Store(true)
		return
	case <-ctx.Done():
		return
	}
	p.mu.Lock()
	decided := p.decided[d]
	p.mu.Unlock()
	if decided == nil {
		return
	}
	late.Reset(s.stall)
	select {
	case <-decided:
	case <-late.C:
	case <-ctx.Done():
	}
}

// Writer implements content.Store. A client that fetches all blobs of an image, beside unpacking it,
// opens the writer of a layer's blob inside a transaction, without saying what it is going to
// write, and then asks how much is there. That question waits until it is known whether the layer is
// served. If so, all of the blob is there.
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
	asked int             // how often the status was asked for
	found *content.Status // of the claimed blob
}

// Status implements content.Writer. It is asked for the first time within the transaction.
func (w *claimedWriter) Status() (content.Status, error) {
	if w.found != nil {
		return *w.found, nil
	}
	status, err := w.Writer.Status()
	if w.asked++; err != nil || w.asked != 2 || status.Offset > 0 {
		return status, err
	}
	w.store.await(w.ctx, w.layer)
	if c, ok := w.store.claims.get(w.layer); ok {
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

// Truncate implements content.Writer.
func (w *claimedWriter) Truncate(size int64) error {
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
