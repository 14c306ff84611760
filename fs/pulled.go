package fs

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/pull"
)

// pullHost is the table as its pulls see it.
type pullHost struct{ *Table }

var _ pull.Host = pullHost{}

// newPulls returns the pulls of a table.
func (t *Table) newPulls() *pull.Pulls {
	return pull.New(t.ctx, pullHost{t}, pull.Options{
		Root: t.o.Root, Remote: t.o.Remote, Store: t.store, Cache: t.cache, Budget: t.budget,
		Prefetch: &t.prefetch, Copies: t.copies, Profiles: t.o.Profiles,
		Whole:    t.o.Mode == Local || t.o.LocalIndexes,
		Early:    t.o.Fetch.Fill != fetch.None,
		Limited:  t.o.Fetch.Bandwidth > 0,
		Deadline: t.o.PullDeadline, Downloads: t.o.Downloads,
		Limits: t.o.Limits, Scanning: t.o.Scanning, Log: t.log,
	})
}

// requestOf is what the pulls are to know of a layer that containerd asks for.
func requestOf(l Layer, below []Below) pull.Request {
	r := pull.Request{
		Ref: l.Ref, Manifest: l.Manifest, Layer: l.Digest, DiffID: l.DiffID, Above: l.Image,
	}
	for _, b := range below {
		r.Below = append(r.Below, b.Digest)
	}
	return r
}

// Go implements pull.Host.
func (h pullHost) Go(f func(ctx context.Context)) bool { return h.goes(f) }

// Panicked implements pull.Host.
func (h pullHost) Panicked(v any) { h.panicked(v) }

// Asked implements pull.Host.
func (h pullHost) Asked(r pull.Request) { h.record(r) }

// Show implements pull.Host.
func (h pullHost) Show(ctx context.Context, ref string, d digest.Digest, lowest bool) error {
	v, err := h.stored(Layer{Ref: ref, Digest: d})
	if err != nil {
		return err
	}
	implicit, err := v.index.Implicit()
	if err != nil || len(implicit) > 0 {
		return err // Mount knows the layers below
	}
	if lowest {
		_, err = v.mount(ctx, "", nil)
	} else {
		_, err = v.mountSpot(ctx, spot{layer: d}, &changes{}, "")
	}
	return err
}

// Sweep implements pull.Host.
func (h pullHost) Sweep(ctx context.Context, layers []digest.Digest) error {
	return h.sweep(ctx, layers)
}

// RemoveDamaged implements pull.Host.
func (h pullHost) RemoveDamaged(d digest.Digest, why error) error { return h.removeDamaged(d, why) }

// Announce says that containerd is pulling an image of these layers: see pull.Pulls.Announce.
func (t *Table) Announce(ref string, manifest digest.Digest, layers []digest.Digest) error {
	return t.pulls.Announce(ref, manifest, layers)
}

// Promise returns what Mount is going to return for a layer, as soon as it is known that the image
// has an index with it: the index itself may still be on its way, so that containerd need not wait
// for it before it goes on. ok is false where that cannot be said, because the layer was here
// before, or is to be downloaded whole, or looks different on other layers; then there is only
// Mount. Who has got a promise calls Mount all the same, before anybody is to see the layer.
func (t *Table) Promise(ctx context.Context, l Layer, below []Below) (m Mounted, ok bool) {
	if l.Digest.Validate() != nil || !t.pulls.Promises(l.Digest) {
		return Mounted{}, false
	}
	if _, err := t.kernel(); err != nil {
		return Mounted{}, false
	}
	r := requestOf(l, below)
	t.pulls.Heed(r)
	if err := t.want(ctx, l.Digest); err != nil {
		return Mounted{}, false
	}
	told, ok := t.pulls.Promise(ctx, r)
	if !ok {
		return Mounted{}, false
	}
	dir, err := t.names.path(spotOf(l.Digest, below))
	if err != nil {
		t.log.WarnContext(ctx, "a layer is not promised", "layer", l.Digest, "err", err)
		return Mounted{}, false
	}
	t.pulls.Promised(l.Digest)
	return Mounted{Dir: dir, DiffID: told.DiffID, Size: told.Size, Inodes: told.Inodes}, true
}

// AwaitPromised returns when the layers that are promised now have come, or their coming has
// failed, but after a second at the latest. Status then shows those of a pull that has just ended.
func (t *Table) AwaitPromised() { t.pulls.AwaitPromised() }
