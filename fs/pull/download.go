package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/targz"
	"github.com/mica-snapshotter/mica/remote"
)

// bring puts a layer into the store: its index, or the whole of it. It calls atHand when it has
// come to its index.
func (p *Pull) bring(d digest.Digest, atHand func()) error {
	if l, err := p.all.o.Store.Layer(d); err == nil {
		return l.Close() // it came by another way
	} else if errors.Is(err, store.ErrDamaged) {
		if err := p.all.host.RemoveDamaged(d, err); err != nil {
			return err
		}
	} else if !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	why := "micad's configuration has it download every layer (mode, index.trust)"
	if !p.all.o.Whole {
		b, err := p.bundle()
		if err != nil {
			return err
		}
		why = p.without
		if b != nil {
			why = leftOut
		}
		if l, ok := b.find(d); ok {
			atHand()
			err := p.install(b, l)
			switch {
			case errors.Is(err, index.ErrCorrupt):
				why = "its index is damaged"
			case errors.Is(err, index.ErrNewer):
				why = fmt.Sprintf("its index cannot be used: %v", err)
			default:
				return err
			}
			p.all.o.Log.Error("index from the registry is not usable: the layer is downloaded "+
				"whole",
				"ref", p.name(), "layer", d, "err", err)
		}
	}
	return p.download(d, why)
}

// install puts a layer's index from the image's bundle into the store.
func (p *Pull) install(b *imageIndex, l bundle.Record) error {
	in, err := p.all.o.Store.Create(l.Layer)
	if err != nil {
		return err
	}
	defer p.abort(in)
	rec, err := p.extract(in, b, l)
	if err != nil {
		return err
	}
	return p.commit(in, rec)
}

// extract writes a layer's index into a draft, checks it, and returns what the store is to keep
// about the layer.
func (p *Pull) extract(
	in *store.Incoming, b *imageIndex, l bundle.Record,
) (rec store.Record, err error) {
	select {
	case p.all.cores <- struct{}{}:
	case <-p.ctx.Done():
		return rec, p.ctx.Err()
	}
	defer func() { <-p.all.cores }()
	if err := b.Extract(l.Layer, in.Index()); err != nil {
		return rec, err
	}
	r, size, err := in.IndexReader()
	if err != nil {
		return rec, err
	}
	x, err := index.Open(r, size)
	if err != nil {
		return rec, err
	}
	if !l.Packed {
		if err := index.Check(p.ctx, x); err != nil {
			return rec, err
		}
	}
	if err := p.all.o.Limits.Layer(x.Header().DeviceSize); err != nil {
		return rec, Advise(err)
	}
	if x.Header() != l.Header {
		return rec, fmt.Errorf("%w: it describes layer %s", index.ErrCorrupt, x.Header().Layer)
	}
	if rec, err = p.record(x, store.Lazy); err != nil {
		return rec, err
	}
	rec.Windows, err = b.windowsOf(l)
	rec.Vouchers = []string{proof.RepositoryOf(p.name())}
	return rec, err
}

// download brings a layer whole, and makes its index on the way. why says why it is not lazy.
func (p *Pull) download(d digest.Digest, why string) error {
	if err := p.awaitAsked(); err != nil {
		return err
	}
	layers, err := p.manifest()
	if err != nil {
		return err
	}
	ctx, done, err := p.claimDownload(layers, d)
	if err != nil {
		return err
	}
	defer done()
	select {
	case p.all.sem <- struct{}{}:
		defer func() { <-p.all.sem }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	desc := layers[slices.IndexFunc(layers, func(l ocispec.Descriptor) bool {
		return l.Digest == d
	})]
	for try, window := 1, int64(0); ; try++ {
		err := p.downloadOnce(ctx, desc, window)
		switch {
		case errors.Is(err, targz.ErrWindow) && window == 0:
			window = targz.MaxZstdWindow
			continue
		case permanent(err):
			p.inVain(d, err)
		case err == nil:
			p.noteWhole(desc, why)
		}
		if try == maxDownloads || !errors.Is(err, errSent) {
			return err
		}
		p.all.o.Log.Warn("downloaded bytes are wrong, somebody else is asked",
			"ref", p.name(), "layer", d, "err", err)
		p.image.Blob(desc).Suspect(0, desc.Size)
	}
}

// downloadOnce brings a layer whole. For window see targz.Options.
func (p *Pull) downloadOnce(ctx context.Context, desc ocispec.Descriptor, window int64) error {
	in, err := p.all.o.Store.Create(desc.Digest)
	if err != nil {
		return err
	}
	defer p.abort(in)
	memory := p.all.scans.begin(ctx)
	defer memory.End()
	x, err := p.scan(ctx, in, desc,
		targz.Options{Limits: p.all.o.Limits.Tree(memory), Window: window})
	if err != nil {
		return fmt.Errorf("download layer %s of %s: %w", desc.Digest, p.name(), err)
	}
	rec, err := p.record(x, p.all.o.Cache.StateOf(x.Header().DeviceSize))
	if err != nil {
		return err
	}
	rec.MediaType = desc.MediaType
	return p.commit(in, rec)
}

// scan reads the layer's blob into in and returns the index that it made of it.
func (p *Pull) scan(
	ctx context.Context, in *store.Incoming, desc ocispec.Descriptor, o targz.Options,
) (*index.Layer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := func() { cancel(fmt.Errorf("no byte came for %v (pull_deadline)", p.all.o.Deadline)) }
	opening := time.AfterFunc(p.all.o.Deadline, late)
	body, err := p.image.Open(ctx, desc)
	opening.Stop()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	r := source.Watch(body, p.all.o.Deadline, late)
	defer r.Stop()
	o.Whole, o.DeviceSize = true, p.all.o.Limits.LayerSize
	o.Device, o.Windows = p.all.o.Cache.Writer(in.Device()), in.Windows()
	draft, err := targz.Scan(ctx, r, o)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && p.ctx.Err() == nil {
			return nil, cause
		}
		return nil, p.blame(desc, err)
	}
	if draft.Layer != desc.Digest {
		return nil, fmt.Errorf("its bytes have digest %s: %w", draft.Layer, errSent)
	}
	if _, err := index.Write(in.Index(), draft); err != nil {
		return nil, err
	}
	at, size, err := in.IndexReader()
	if err != nil {
		return nil, err
	}
	return index.Open(at, size)
}

// blame says what the error of a scan comes of.
func (p *Pull) blame(desc ocispec.Descriptor, err error) error {
	var found *targz.Panic
	if errors.As(err, &found) {
		p.all.host.Panicked(fmt.Sprintf("%v\n%s", found.Value, found.Stack))
	}
	var bad *targz.Malformed
	switch {
	case !errors.As(err, &bad):
		return Advise(err)
	case bad.Layer == desc.Digest:
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return fmt.Errorf("%w: its bytes have digest %s: %w", errSent, bad.Layer, err)
}

// record returns what the store keeps about a layer of this image.
func (p *Pull) record(x *index.Layer, state store.State) (store.Record, error) {
	spans, err := x.Spans()
	if err != nil {
		return store.Record{}, err
	}
	h := x.Header()
	return store.Record{
		Layer: h.Layer, DiffID: h.DiffID, LayerSize: h.LayerSize, DeviceSize: h.DeviceSize,
		Spans: len(spans), State: state, Refs: []string{p.name()},
	}, nil
}

// abort removes what a failed attempt left. After Commit there is nothing to remove.
func (p *Pull) abort(in *store.Incoming) {
	if err := in.Abort(); err != nil {
		p.all.o.Log.Warn("unfinished layer is left over until the next start",
			"ref", p.name(), "err", err)
	}
}

func (p *Pull) commit(in *store.Incoming, rec store.Record) error {
	p.all.mu.Lock()
	gone := p.replaces[rec.Layer]
	delete(p.replaces, rec.Layer)
	p.all.mu.Unlock()
	if gone != nil {
		if err := gone(); err != nil {
			return err
		}
	}
	l, err := in.Commit(rec)
	if errors.Is(err, iofs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	p.all.mu.Lock()
	p.brought = append(p.brought, rec.Layer)
	p.all.mu.Unlock()
	return l.Close()
}

// fetchManifest returns the image's layers, the lowest first. containerd has just had the manifest:
// where it does not come soon, containerd can do better than this process.
func (p *Pull) fetchManifest() ([]ocispec.Descriptor, error) {
	wait := p.image.Patience(p.ctx, remote.AboutManifest, max(lookupTime-p.waited, lookupLeast))
	ctx, cancel := context.WithTimeoutCause(p.ctx, wait, errSlow)
	defer cancel()
	d := ocispec.Descriptor{Digest: p.key.manifest}
	b, err := p.image.Manifest(ctx, d)
	switch {
	case err == nil:
		p.image.Answered(p.ctx, remote.AboutManifest)
	case errors.Is(err, errSlow):
		p.image.Unanswered(p.ctx, remote.AboutManifest, func(ctx context.Context) error {
			_, err := p.image.Manifest(ctx, d)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest %s of %s: %w", p.key.manifest, p.name(), err)
	}
	for _, l := range m.Layers {
		if l.Digest.Validate() != nil || l.Size < 0 {
			return nil, fmt.Errorf("manifest %s of %s: layer %q of %d bytes",
				p.key.manifest, p.name(), l.Digest, l.Size)
		}
	}
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	p.descs = m.Layers
	return m.Layers, nil
}

// maxDownloads is how often a layer is downloaded whose bytes turn out to be wrong.
const maxDownloads = 3

// errSent is wrapped by the errors of downloads that were not the layer.
var errSent = errors.New("the registry or a proxy sent something else")
