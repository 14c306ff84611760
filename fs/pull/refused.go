package pull

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/targz"
	"github.com/mica-snapshotter/mica/index/tartree"
)

// From the lowest layer of an image on that is not served, containerd fetches all of them: nothing
// above it is downloaded here.

const (
	// maxRefused bounds how many layers are remembered that cannot be served.
	maxRefused = 4096
	// refusedTime is for how long: longer than containerd takes to ask again for an image.
	refusedTime = 10 * time.Minute
)

// errMalformed is wrapped by the error for a layer that is what its digest says, and no layer.
var errMalformed = errors.New(
	"the layer was built wrong: its bytes are those of its digest, and no layer")

// errUnder is wrapped by the error of a layer that is not downloaded because containerd will.
var errUnder = errors.New("a layer under it is not served, so that containerd fetches this one too")

// permanent says whether a layer whose scan fails so can never be served: what is wrong is wrong in
// the bytes of its digest.
func permanent(err error) bool {
	if errors.Is(err, errUnder) {
		return false // it is of another layer
	}
	for _, why := range []error{
		errMalformed, targz.ErrNotIndexable, bundle.ErrLimit, tartree.ErrLimit,
	} {
		if errors.Is(err, why) {
			return true
		}
	}
	return false
}

// servable says why a layer cannot be served, where that is known beforehand.
func servable(d ocispec.Descriptor) error {
	if strings.HasSuffix(d.MediaType, "+encrypted") {
		return fmt.Errorf("layer %s is encrypted (%s)", d.Digest, d.MediaType)
	}
	return nil
}

// refusals is what is known of layers that cannot be served, as a repository has them. It is
// guarded by Pulls.mu.
type refusals map[refusedKey]refusal

type refusedKey struct {
	repository string
	layer      digest.Digest
}

type refusal struct {
	err error
	at  time.Time
}

func (r refusals) add(k refusedKey, err error) {
	if len(r) >= maxRefused {
		clear(r)
	}
	r[k] = refusal{err, time.Now()}
}

// why returns why a layer cannot be served, nil if nothing is known of it.
func (r refusals) why(k refusedKey) error {
	if f, ok := r[k]; ok && time.Since(f.at) < refusedTime {
		return f.err
	}
	return nil
}

// claimDownload returns the context in which a layer is to be downloaded, unless that is in vain.
// Pair it with done.
func (p *Pull) claimDownload(
	layers []ocispec.Descriptor, d digest.Digest,
) (ctx context.Context, done func(), err error) {
	a := p.all
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range layers {
		err := cmp.Or(servable(l), a.refused.why(refusedKey{p.key.repository, l.Digest}))
		switch {
		case err != nil && l.Digest == d:
			return nil, nil, err
		case err != nil:
			return nil, nil, fmt.Errorf("%w: %w", errUnder, err)
		case l.Digest == d:
			ctx, cancel := context.WithCancelCause(p.ctx)
			p.downloads[d] = cancel
			return ctx, func() {
				a.mu.Lock()
				defer a.mu.Unlock()
				delete(p.downloads, d)
				cancel(nil)
			}, nil
		}
	}
	return nil, nil, fmt.Errorf("manifest %s of %s names no layer %s", p.key.manifest, p.ref, d)
}

// inVain ends the downloads of what lies above a layer that is not served.
func (p *Pull) inVain(d digest.Digest, why error) {
	a := p.all
	a.mu.Lock()
	defer a.mu.Unlock()
	if permanent(why) {
		a.refused.add(refusedKey{p.key.repository, d}, why)
	}
	at := slices.IndexFunc(p.descs, func(l ocispec.Descriptor) bool { return l.Digest == d })
	if at < 0 {
		return
	}
	for i := len(p.descs) - 1; i > at; i-- {
		l := p.descs[i].Digest
		// A layer that the image has under this one too is needed there.
		under := slices.ContainsFunc(p.descs[:at], func(o ocispec.Descriptor) bool {
			return o.Digest == l
		})
		if cancel := p.downloads[l]; cancel != nil && !under && l != d {
			cancel(fmt.Errorf("%w: %w", errUnder, why))
		}
	}
}

// InVain ends the downloads of what lies above a layer that is not served, if its image's pull is
// under way.
func (a *Pulls) InVain(r Request, why error) {
	a.mu.Lock()
	p := a.under[keyOf(r.Ref, r.Manifest)]
	a.mu.Unlock()
	if p != nil {
		p.inVain(r.Layer, why)
	}
}
