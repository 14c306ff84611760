package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
)

const (
	// admitTries bounds how often a chain is looked at anew because a layer of it was replaced.
	// Each time at least one more layer is proved, so that more tries than layers are not needed.
	admitTries = 512
	// imagesTimeout is how long containerd may take to tell of its images.
	imagesTimeout = 10 * time.Second
)

// admit returns the chain of a snapshot's parents when all its layers are mounted, and may be shown
// to whoever asked for a snapshot on them.
//
// A chain ID is what an image's config claims. containerd asks for a chain once, and gives its
// snapshots to all images that claim it. So a layer that is not proved is shown only where each
// image that a container can be of names the layer's blob at that place, and was pulled from
// repositories that vouch for its index. Otherwise somebody's claim may be false, and the place
// goes to a layer that is proved: the one that is there, or one that another of the images names.
func (s *Snapshotter) admit(
	ctx context.Context, key, parent string, labels map[string]string,
) (chain, error) {
	for range admitTries {
		c, err := s.viewChain(ctx, parent)
		if err != nil || len(c) == 0 {
			return c, err
		}
		s.layers.Starting(key, c.top())
		s.examine(c)
		for i, l := range c {
			if c[i+1:].changed() {
				s.restored.forget(l.id)
			}
		}
		mounted, err := s.await(ctx, c)
		if err != nil && !errors.Is(err, ErrDisproved) {
			return nil, err
		}
		if mounted || err != nil { // a layer may be another, and at another directory, than before
			if c, err = s.viewChain(ctx, parent); err != nil {
				return nil, err
			}
			s.examine(c)
		}
		at, images, err := s.doubtful(ctx, key, c, labels)
		if at < 0 || err != nil {
			return c, err
		}
		if err := s.settle(ctx, c, at, images); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("layers under %s change all the time", parent)
}

// snapshotImages is what containerd has said of a snapshot.
type snapshotImages struct {
	parent string  // the number of its parent
	images []Image // that it can be for
}

// doubtful returns the lowest layer of a chain that must not be shown before it is proved, and the
// images that the snapshot with this key and these labels can be for; -1: there is none.
//
// What containerd unpacks is there for good, for all images that claim its chain, and takes from
// the layers below it what its tar does not say of a directory: it lies on nothing that is not
// proved.
//
// containerd is asked once for a snapshot, as long as its images vouch for all that is not proved:
// a container's image is in containerd when its snapshot is prepared, so that none that is pulled
// later is the container's.
func (s *Snapshotter) doubtful(
	ctx context.Context, key string, c chain, labels map[string]string,
) (at int, images []Image, err error) {
	if !c.doubted() {
		return -1, nil, nil
	}
	unpacking := labels[snapshots.LabelSnapshotRef] != ""
	t, ok := s.imagesBySnapshot.Load(key)
	if ok && !unpacking && t.(snapshotImages).parent == c[0].id {
		at, err := s.unvouched(ctx, c, t.(snapshotImages).images)
		if at < 0 || err != nil {
			return at, nil, err
		}
	}
	if images, err = s.imagesOf(ctx, key, c, labels); err != nil {
		if ctx.Err() != nil {
			return -1, nil, ctx.Err()
		}
		s.log.WarnContext(ctx,
			"layers are proved before they are shown: containerd does not tell whose they are",
			"err", err, "key", key)
	}
	if unpacking {
		return c.lowestDoubted(), images, nil
	}
	s.imagesBySnapshot.Store(key, snapshotImages{c[0].id, images})
	at, err = s.unvouched(ctx, c, images)
	return at, images, err
}

// unvouched returns the lowest layer of a chain that is not proved, and that not all of the images
// vouch for; -1: there is none.
func (s *Snapshotter) unvouched(ctx context.Context, c chain, images []Image) (at int, err error) {
	for i := len(c) - 1; i >= 0; i-- {
		if !c[i].doubted {
			continue
		}
		ok, err := s.vouched(ctx, c[i], images)
		if err != nil {
			return -1, err
		}
		if !ok {
			return i, nil
		}
	}
	return -1, nil
}

// vouched says whether a layer may be shown to each of the images, although it is not proved.
func (s *Snapshotter) vouched(ctx context.Context, l link, images []Image) (bool, error) {
	for _, i := range images {
		if i.layer(digest.Digest(l.target)) != l.served.Layer || len(i.Refs) == 0 {
			return false, nil
		}
		for _, ref := range i.Refs {
			ok, err := s.layers.Vouched(ctx, Layer{
				Ref: ref, Manifest: i.Manifest, Digest: l.served.Layer, DiffID: l.served.DiffID,
			})
			if errors.Is(err, ErrDisproved) {
				return false, nil
			}
			if !ok || err != nil {
				return false, err
			}
		}
	}
	return len(images) > 0, nil
}

// imagesOf returns the images that a snapshot can be for: the one that its labels name, whose
// layers are being unpacked, or those that claim or have the chain.
func (s *Snapshotter) imagesOf(
	ctx context.Context, key string, c chain, labels map[string]string,
) ([]Image, error) {
	in := scope(key, labels)
	if s.images == nil || in.Namespace == "" {
		return nil, errors.New("micad does not know of its images")
	}
	ctx, cancel := context.WithTimeout(ctx, imagesTimeout)
	defer cancel()
	if labels[snapshots.LabelSnapshotRef] != "" {
		target, err := digest.Parse(labels[snapshots.LabelSnapshotRef])
		if err != nil {
			return nil, err
		}
		if !annotated(labels) {
			var all []Image
			for image, err := range s.images.Claiming(ctx, in, target) {
				if image.Manifest == "" {
					return nil, err
				}
				all = append(all, image) // without references, where it has an error
			}
			return all, nil
		}
		req, err := parseRequest(target, labels)
		if err != nil {
			return nil, err
		}
		image, err := s.images.Named(ctx, in.Namespace, req.layer.Ref, req.layer.Manifest)
		if err != nil {
			return nil, err
		}
		return []Image{image}, nil
	}
	var top digest.Digest
	for _, l := range c {
		if l.served != nil {
			in.Known = append(in.Known, l.served.Ref)
		}
		if top == "" {
			top = digest.Digest(l.target)
		}
	}
	return s.images.With(ctx, in, top)
}

// settle gives the place of a layer in a chain to a layer that is proved: whichever of those that
// the images name, and of the one that is there, is so first.
func (s *Snapshotter) settle(ctx context.Context, c chain, at int, images []Image) error {
	l := c[at]
	s.log.WarnContext(ctx,
		"a layer is proved before it is shown: not all images that it may be for vouch for it",
		"ref", l.served.Ref, "layer", l.served.Layer, "chain", l.target)
	candidates := candidatesFor(l, images)
	for blob := range candidates {
		if err := s.uses.acquire(ctx, blob); err != nil {
			return err
		}
		defer s.uses.release(blob)
		if err := s.markServed(blob); err != nil {
			return err
		}
	}
	racing, end := context.WithCancel(ctx)
	defer end()
	type result struct {
		record
		err error
	}
	results := make(chan result, len(candidates))
	for _, same := range candidates {
		go func() {
			r, err := s.proveFirst(racing, c, at, same)
			results <- result{r, err}
		}()
	}
	var winner *record
	var errs []error
	for range candidates {
		r := <-results
		switch {
		case r.err != nil:
			errs = append(errs, r.err)
		case winner == nil:
			winner = &r.record
			end()
		}
	}
	if winner == nil {
		return fmt.Errorf("no image on this node is known to have the bytes of layer %s (chain %s); "+
			"remove the images that use it and pull again: %w",
			l.served.DiffID, l.target, errors.Join(errs...))
	}
	return s.replace(ctx, l, *winner)
}

// candidatesFor returns the layers that may be what a place in a chain claims, by their blobs: the
// one that is there, and those that the images name.
func candidatesFor(l link, images []Image) map[digest.Digest][]Layer {
	candidates := map[digest.Digest][]Layer{}
	for _, i := range images {
		blob := i.layer(digest.Digest(l.target))
		if blob.Validate() != nil {
			continue
		}
		for _, ref := range i.Refs {
			candidates[blob] = append(candidates[blob],
				Layer{Ref: ref, Manifest: i.Manifest, Digest: blob})
		}
	}
	// The word of the image that brought it is heard last: the others can bring the same blob anew.
	candidates[l.served.Layer] = append(candidates[l.served.Layer], l.served.layer())
	return candidates
}

// proveFirst returns the record of the first of some layers, of one blob, that is proved to be what
// a place in a chain claims.
func (s *Snapshotter) proveFirst(
	ctx context.Context, c chain, at int, same []Layer,
) (record, error) {
	below := c[at+1:]
	var errs []error
	for _, l := range same {
		m, err := s.mountLayer(ctx, l, below)
		if err == nil {
			err = checkChain(digest.Digest(c[at].target), m.DiffID, below.target())
		}
		if err == nil {
			err = s.layers.Prove(ctx, l.Digest)
		}
		if err == nil {
			return record{Ref: l.Ref, Manifest: l.Manifest, Layer: l.Digest, DiffID: m.DiffID,
				Dir: m.Dir}, nil
		}
		errs = append(errs, fmt.Errorf("layer %s of %s: %w", l.Digest, l.Ref, err))
	}
	return record{}, errors.Join(errs...)
}

// replace makes a committed snapshot refer to another layer.
func (s *Snapshotter) replace(ctx context.Context, l link, r record) error {
	if r.Layer == l.served.Layer && r.Dir == l.served.Dir && r.DiffID == l.served.DiffID {
		return nil
	}
	r.Former = l.served.Former
	if r.Layer != l.served.Layer {
		r.Former = append(r.Former, l.served.Layer)
		s.log.WarnContext(ctx,
			"another layer takes the place of one that is not what its image claims",
			"layer", r.Layer, "ref", r.Ref, "former", l.served.Layer, "former_ref", l.served.Ref)
	}
	if err := s.rerecord(ctx, l.name, r); err != nil {
		return err
	}
	s.restored.forget(l.id)
	return nil
}

// rerecord changes what a committed snapshot refers to.
func (s *Snapshotter) rerecord(ctx context.Context, name string, r record) error {
	value, err := r.encode()
	if err != nil {
		return err
	}
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		info := snapshots.Info{Name: name, Labels: map[string]string{recordLabel: value}}
		_, err := storage.UpdateInfo(ctx, info, "labels."+recordLabel)
		return err
	})
	if err != nil {
		return fmt.Errorf("change snapshot %s: %w", name, err)
	}
	return nil
}
