package fs

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/bundle"
)

// believedLayer is layer, once its index may be used for the image, and so may those of the layers
// below whose directories it is to inherit attributes from. What another repository has brought,
// and cannot be proved because of what it says, gives way to what the image's own repository has.
func (t *Table) believedLayer(ctx context.Context, l Layer, below []Below) (*openLayer, error) {
	for {
		v, err := t.layer(ctx, l, below)
		if err != nil {
			return nil, err
		}
		err = v.proof.Believed(ctx, t.image(l, below))
		rec := v.store.Record()
		foreign := !proof.Vouches(&rec, proof.RepositoryOf(l.Ref))
		if foreign && (errors.Is(err, proof.ErrDisproved) || errors.Is(err, index.ErrCorrupt)) {
			if err := t.downloadInstead(ctx, v, l, below); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if got := v.index.Header().DiffID; l.DiffID != "" && got != l.DiffID {
			if v.proof.Standing() == proof.Proved {
				return nil, fmt.Errorf(
					"%w: that is %s, the image names %s", proof.ErrDisproved, got, l.DiffID)
			}
			return nil, fmt.Errorf("its index is of a tar with digest %s, the image names %s: "+
				"one of the two lies", got, l.DiffID)
		}
		return v, t.believedBelow(ctx, v, l, below)
	}
}

// believedBelow returns when a layer may inherit from those below it.
func (t *Table) believedBelow(ctx context.Context, v *openLayer, l Layer, below []Below) error {
	implicit, err := v.index.Implicit()
	if err != nil || len(implicit) == 0 {
		return err
	}
	for i, b := range below {
		if b.Digest == "" {
			continue
		}
		under, err := t.stored(Layer{Digest: b.Digest})
		if err == nil {
			of := Layer{Ref: l.Ref, Manifest: l.Manifest, Digest: b.Digest}
			err = under.proof.Believed(ctx, t.image(of, below[i+1:]))
		}
		if err != nil {
			return fmt.Errorf("layer %s below: %w", b.Digest, err)
		}
	}
	return nil
}

// image is an image that a layer is to be shown to, as the layer's proof sees it.
func (t *Table) image(l Layer, below []Below) proof.Image {
	return proof.Image{Ref: l.Ref, Lookup: func() (bundle.Record, bool, error) {
		return t.pulls.Lookup(requestOf(l, below))
	}}
}

// Trust says whether a layer is proved, and whether it is forged. It asks nobody but the disk.
// Proved: it is known to be what its diffID names, and its mounts show that. Forged: it was once
// shown by an index that was not its own, and what other layers have inherited from it may be
// wrong.
func (t *Table) Trust(l Layer) (proved, forged bool) {
	s, err := t.store.Layer(l.Digest)
	if err != nil {
		return false, false
	}
	defer s.Close()
	rec := s.Record()
	if !proof.Is(&rec, l.DiffID) {
		return false, rec.Forged
	}
	v := t.openNow(l.Digest)
	return v == nil || v.proof.Shown() == nil, rec.Forged
}

// Vouched says whether the layer, which is here, may be shown to images of l.Ref's repository: it
// is proved, or that repository has the very index that shows it, which may take a request. It may
// not where the answer cannot be had. An error says that no proof will change that.
func (t *Table) Vouched(ctx context.Context, l Layer) (bool, error) {
	v, err := t.stored(Layer{Digest: l.Digest})
	if err != nil {
		return false, fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	if l.DiffID != "" && l.DiffID != v.index.Header().DiffID {
		return false, fmt.Errorf("%w: that is %s", proof.ErrDisproved, v.index.Header().DiffID)
	}
	if ok, err := v.proof.Vouched(ctx, t.image(l, nil)); !ok || err != nil {
		return false, err
	}
	return true, v.proof.Shown()
}

// Prove returns nil when a layer that is here is what its diffID names, and shown so from now on.
// It fetches what is missing of it. The error wraps proof.ErrDisproved where it is not.
func (t *Table) Prove(ctx context.Context, d digest.Digest) error {
	v, err := t.stored(Layer{Digest: d})
	if err != nil {
		return fmt.Errorf("prove layer %s: %w", d, err)
	}
	if v.proof.Standing() != proof.Proved {
		if err := v.proof.Prove(ctx); err != nil {
			return fmt.Errorf("prove layer %s: %w", d, err)
		}
	}
	if err := v.proof.Shown(); err != nil {
		return fmt.Errorf("prove layer %s: %w", d, err)
	}
	return nil
}

// vouchBelow finds out in the background whether an image's repository has the indexes of the
// layers below one of its own, so that its containers need not wait for the answer.
func (t *Table) vouchBelow(l Layer, below []Below) {
	for i, b := range below {
		v := t.openNow(b.Digest)
		if v == nil {
			continue
		}
		of := Layer{Ref: l.Ref, Manifest: l.Manifest, Digest: b.Digest}
		image := t.image(of, below[i+1:])
		if !v.proof.Asks(image) {
			continue
		}
		t.goes(func(ctx context.Context) {
			_, err := v.proof.Vouched(ctx, image)
			if err != nil && ctx.Err() == nil {
				t.log.DebugContext(ctx, "layer below is not vouched for", "err", err, "ref", l.Ref,
					"layer", b.Digest)
			}
		})
	}
}

// downloadInstead downloads a layer whole for an image, which proves it, and puts it into the place
// of v.
func (t *Table) downloadInstead(ctx context.Context, v *openLayer, l Layer, below []Below) error {
	t.log.WarnContext(ctx,
		"a layer with an index that another repository has brought cannot be proved: it is "+
			"downloaded anew",
		"ref", l.Ref, "layer", v.digest)
	return t.pulls.Replace(ctx, requestOf(l, below), func() error {
		// Its mounts go: what their readers have read was not the image's.
		t.damage.Lock()
		defer t.damage.Unlock()
		if t.openNow(v.digest) != v {
			return nil // it has gone already
		}
		return t.discard(t.ctx, v.digest)
	})
}
