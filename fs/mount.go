package fs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/pull"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/bundle"
)

// ErrUnavailable is wrapped by the errors of Mount that mean: Mica cannot serve this
// layer, and trying again at once will not help.
var ErrUnavailable = errors.New("layer is not available")

// Mount makes the layer appear and returns where. below are the layers under it, topmost first:
// directories that the layer's tar implies but does not mention show the attributes that they have
// there. Mount is idempotent, and returns the same directory for equal arguments, after a restart
// too.
func (t *Table) Mount(ctx context.Context, asked Layer, below []Below) (m Mounted, err error) {
	r := requestOf(asked, below)
	defer func() {
		if ctx.Err() == nil && t.ctx.Err() == nil {
			t.pulls.Settle(asked.Digest, err)
		}
		if errors.Is(err, ErrUnavailable) {
			t.pulls.InVain(r, err)
		}
	}()
	if err := asked.Digest.Validate(); err != nil {
		return Mounted{}, fmt.Errorf("mount layer %q: %w", asked.Digest, err)
	}
	if err := t.want(ctx, asked.Digest); err != nil {
		return Mounted{}, fmt.Errorf("mount layer %s: %w", asked.Digest, err)
	}
	t.pulls.Heed(r)
	l, err := t.believedLayer(ctx, r)
	var dir string
	if err == nil {
		dir, err = l.mount(ctx, asked.Dir, below)
	}
	if err == nil {
		err = l.proof.Shown()
	}
	if err != nil {
		return Mounted{}, t.unavailable(ctx, asked.Digest, err)
	}
	t.vouchBelow(r)
	h := l.index.Header()
	return Mounted{Dir: dir, DiffID: h.DiffID, Size: h.DeviceSize, Inodes: l.index.Inodes()}, nil
}

// unavailable makes err say that containerd should pull the layer itself, unless the caller or
// the table has ended: whatever the reason, an ordinary snapshot may still work.
func (t *Table) unavailable(ctx context.Context, d digest.Digest, err error) error {
	err = fmt.Errorf("%w (layer %s)", err, d) // the cause first: somebody reads it in a list
	if ctx.Err() != nil || t.ctx.Err() != nil {
		return err
	}
	return unavailableError{err}
}

// unavailableError is an ErrUnavailable that says no more than its cause.
type unavailableError struct{ error }

// Is implements what errors.Is asks for.
func (unavailableError) Is(target error) bool { return target == ErrUnavailable }

// Unwrap implements what errors.Is asks for.
func (e unavailableError) Unwrap() error { return e.error }

// Promise returns what Mount is going to return for a layer, as soon as it is known that the image
// has an index with it: the index itself may still be on its way, so that containerd need not wait
// for it before it goes on. ok is false where that cannot be said, because the layer was here
// before, or is to be downloaded whole, or looks different on other layers; then there is only
// Mount. Who has got a promise calls Mount all the same, before anybody is to see the layer.
func (t *Table) Promise(ctx context.Context, asked Layer, below []Below) (m Mounted, ok bool) {
	if asked.Digest.Validate() != nil || !t.pulls.Promises(asked.Digest) {
		return Mounted{}, false
	}
	if _, err := t.kernel(); err != nil {
		return Mounted{}, false
	}
	r := requestOf(asked, below)
	t.pulls.Heed(r)
	if err := t.want(ctx, asked.Digest); err != nil {
		return Mounted{}, false
	}
	told, ok := t.pulls.Promise(ctx, r)
	if !ok {
		return Mounted{}, false
	}
	dir, err := t.names.path(spotOf(asked.Digest, below))
	if err != nil {
		t.log.WarnContext(ctx, "a layer is not promised", "layer", asked.Digest, "err", err)
		return Mounted{}, false
	}
	t.pulls.Promised(asked.Digest)
	return Mounted{Dir: dir, DiffID: told.DiffID, Size: told.Size, Inodes: told.Inodes}, true
}

// believedLayer is obtain, once its index may be used for the image, and so may those of the layers
// below whose directories it is to inherit attributes from. What another repository has brought,
// and cannot be proved because of what it says, gives way to what the image's own repository has.
func (t *Table) believedLayer(ctx context.Context, r pull.Request) (*openLayer, error) {
	for {
		l, err := t.obtain(ctx, r)
		if err != nil {
			return nil, err
		}
		err = l.proof.Believed(ctx, t.image(r))
		rec := l.store.Record()
		foreign := !proof.Vouches(&rec, proof.RepositoryOf(r.Ref))
		if foreign && (errors.Is(err, proof.ErrDisproved) || errors.Is(err, index.ErrCorrupt)) {
			if err := t.downloadInstead(ctx, l, r); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if got := l.index.Header().DiffID; r.DiffID != "" && got != r.DiffID {
			if l.proof.Standing() == proof.Proved {
				return nil, fmt.Errorf(
					"%w: that is %s, the image names %s", proof.ErrDisproved, got, r.DiffID)
			}
			return nil, fmt.Errorf("its index is of a tar with digest %s, the image names %s: "+
				"one of the two lies", got, r.DiffID)
		}
		return l, t.believedBelow(ctx, l, r)
	}
}

// obtain returns the layer, open, from the table, the store or the registry.
func (t *Table) obtain(ctx context.Context, r pull.Request) (*openLayer, error) {
	for {
		l, err := t.stored(r.Layer, r.Ref)
		if !errors.Is(err, os.ErrNotExist) {
			return l, err
		}
		if err := t.pulls.Bring(ctx, r); err != nil {
			return nil, err
		}
	}
}

// believedBelow returns when a layer may inherit from those below it.
func (t *Table) believedBelow(ctx context.Context, l *openLayer, r pull.Request) error {
	implicit, err := l.index.Implicit()
	if err != nil || len(implicit) == 0 {
		return err
	}
	for i, d := range r.Below {
		if d == "" {
			continue
		}
		under, err := t.stored(d, "")
		if err == nil {
			err = under.proof.Believed(ctx, t.image(requestBelow(r, i)))
		}
		if err != nil {
			return fmt.Errorf("layer %s below: %w", d, err)
		}
	}
	return nil
}

// vouchBelow finds out in the background whether an image's repository has the indexes of the
// layers below one of its own, so that its containers need not wait for the answer.
func (t *Table) vouchBelow(r pull.Request) {
	for i, d := range r.Below {
		under, image := t.openNow(d), t.image(requestBelow(r, i))
		if under == nil || !under.proof.Asks(image) {
			continue
		}
		t.goes(func(ctx context.Context) {
			_, err := under.proof.Vouched(ctx, image)
			if err != nil && ctx.Err() == nil {
				t.log.DebugContext(ctx, "layer below is not vouched for", "err", err, "ref", r.Ref,
					"layer", d)
			}
		})
	}
}

// downloadInstead downloads a layer whole for an image, which proves it, and puts it into the place
// of l.
func (t *Table) downloadInstead(ctx context.Context, l *openLayer, r pull.Request) error {
	t.log.WarnContext(ctx,
		"a layer with an index that another repository has brought cannot be proved: it is "+
			"downloaded anew",
		"ref", r.Ref, "layer", l.digest)
	return t.pulls.Replace(ctx, r, func() error {
		// Its mounts go: what their readers have read was not the image's.
		t.damage.Lock()
		defer t.damage.Unlock()
		if t.openNow(l.digest) != l {
			return nil // it has gone already
		}
		return t.discard(t.ctx, l.digest)
	})
}

// image is an image that a layer is to be shown to, as the layer's proof sees it.
func (t *Table) image(r pull.Request) proof.Image {
	return proof.Image{Ref: r.Ref, Lookup: func() (bundle.Record, bool, error) {
		return t.pulls.Lookup(r)
	}}
}

// requestOf is what the pulls are to know of a layer that containerd asks for.
func requestOf(asked Layer, below []Below) pull.Request {
	r := pull.Request{
		Ref: asked.Ref, Manifest: asked.Manifest, Layer: asked.Digest, DiffID: asked.DiffID,
		Above: asked.Image,
	}
	for _, b := range below {
		r.Below = append(r.Below, b.Digest)
	}
	return r
}

// requestBelow is what the pulls are to know of the i-th layer below.
func requestBelow(r pull.Request, i int) pull.Request {
	return pull.Request{Ref: r.Ref, Manifest: r.Manifest, Layer: r.Below[i], Below: r.Below[i+1:]}
}

// Trust says whether a layer is proved, and whether it is forged. It asks nobody but the disk.
// Proved: it is known to be what its diffID names, and its mounts show that. Forged: it was once
// shown by an index that was not its own, and what other layers have inherited from it may be
// wrong.
func (t *Table) Trust(asked Layer) (proved, forged bool) {
	s, err := t.store.Layer(asked.Digest)
	if err != nil {
		return false, false
	}
	defer s.Close()
	rec := s.Record()
	if !proof.Is(&rec, asked.DiffID) {
		return false, rec.Forged
	}
	l := t.openNow(asked.Digest)
	return l == nil || l.proof.Shown() == nil, rec.Forged
}

// Vouched says whether the layer, which is here, may be shown to images of l.Ref's repository: it
// is proved, or that repository has the very index that shows it, which may take a request. It may
// not where the answer cannot be had. An error says that no proof will change that.
func (t *Table) Vouched(ctx context.Context, asked Layer) (bool, error) {
	l, err := t.stored(asked.Digest, "")
	if err != nil {
		return false, fmt.Errorf("layer %s: %w", asked.Digest, err)
	}
	if asked.DiffID != "" && asked.DiffID != l.index.Header().DiffID {
		return false, fmt.Errorf("%w: that is %s", proof.ErrDisproved, l.index.Header().DiffID)
	}
	if ok, err := l.proof.Vouched(ctx, t.image(requestOf(asked, nil))); !ok || err != nil {
		return false, err
	}
	return true, l.proof.Shown()
}

// Prove returns nil when a layer that is here is what its diffID names, and shown so from now on.
// It fetches what is missing of it. The error wraps proof.ErrDisproved where it is not.
func (t *Table) Prove(ctx context.Context, d digest.Digest) error {
	l, err := t.stored(d, "")
	if err != nil {
		return fmt.Errorf("prove layer %s: %w", d, err)
	}
	if l.proof.Standing() != proof.Proved {
		if err := l.proof.Prove(ctx); err != nil {
			return fmt.Errorf("prove layer %s: %w", d, err)
		}
	}
	if err := l.proof.Shown(); err != nil {
		return fmt.Errorf("prove layer %s: %w", d, err)
	}
	return nil
}
