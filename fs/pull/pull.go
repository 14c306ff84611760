package pull

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/remote"
)

// pullIdle is how long a pull goes on for an image of which nobody waits for a layer:
// between two layers containerd is busy for some milliseconds; after a cancelled pull for ever.
const pullIdle = 30 * time.Second

// Pull brings the layers of one image. Its stages are those of the package comment.
type Pull struct {
	all   *Pulls
	key   key
	image *remote.Image
	ctx   context.Context
	stop  context.CancelFunc

	asked chan struct{} // closed when containerd has asked for a layer

	bundle func() (*imageIndex, error) // the image's index, nil if it has none
	told   chan struct{}               // closed at the look-up's stage told
	// toldOf is what the registry has told of layers by then: it comes before the index.
	toldOf    map[digest.Digest]artifact.Layer
	manifest  func() ([]ocispec.Descriptor, error) // its layers, the lowest first
	roundTrip time.Duration                        // to the registry, about; for bundle alone
	// For bundle alone: how many requests of the image there had been when the pull began.
	before int64
	// How long bundle took to return nothing, and why it did.
	waited  time.Duration
	without string

	// Guarded by Pulls.mu:
	ref     string                 // the reference by which it is pulled
	lowest  digest.Digest          // its first layer, once that is known
	layers  map[digest.Digest]bool // of the image; nil until containerd has asked
	waiters int
	idle    *time.Timer
	jobs    []*job          // those that it has started
	brought []digest.Digest // layers that it has put into the store
	whole   *Whole          // what it has downloaded whole; nil: nothing
	// Of the manifest, once it is here; and the downloads of layers under way.
	descs     []ocispec.Descriptor
	downloads map[digest.Digest]context.CancelCauseFunc
	// replaces takes away layers that give way to those that it downloads.
	replaces map[digest.Digest]func() error
}

// ask notes that containerd has asked for a layer of the pull's image, by a reference.
func (p *Pull) ask(r Request) {
	if p.askFirst(r) {
		p.all.host.Asked(r)
	}
}

func (p *Pull) askFirst(r Request) bool {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	p.all.ignoring = false
	if len(r.Below) == 0 {
		p.lowest = r.Layer
	}
	if p.askedLocked() {
		return false
	}
	p.ref, p.layers = r.Ref, r.Layers()
	close(p.asked)
	return true
}

// isLowest says whether a layer is the image's first, as far as that is known.
func (p *Pull) isLowest(d digest.Digest) bool {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	return p.lowest == d
}

// startedLocked says whether the pull has begun to bring a layer.
func (p *Pull) startedLocked(d digest.Digest) bool {
	return slices.ContainsFunc(p.jobs, func(j *job) bool { return j.layer == d })
}

func (p *Pull) askedLocked() bool {
	select {
	case <-p.asked:
		return true
	default:
		return false
	}
}

// awaitAsked returns when containerd has asked for a layer of the image. An error says that it will
// not.
func (p *Pull) awaitAsked() error {
	select {
	case <-p.asked:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// whenAsked has do done at once if containerd has asked for a layer of the image, and else when it
// does.
func (p *Pull) whenAsked(do func()) {
	select {
	case <-p.asked:
		do()
	default:
		p.all.host.Go(func(context.Context) {
			if p.awaitAsked() == nil {
				do()
			}
		})
	}
}

// name is the reference by which the image is pulled, as far as it is known.
func (p *Pull) name() string {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	return p.ref
}

// Leave ends a pull that nobody joins again soon.
func (p *Pull) Leave() {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	if p.waiters--; p.waiters > 0 {
		return
	}
	p.idle = time.AfterFunc(pullIdle, func() { p.all.host.Go(p.End) })
}

// End stops a pull that nobody has joined again, and gives up what it brought for nobody.
func (p *Pull) End(ctx context.Context) {
	a := p.all
	a.mu.Lock()
	if p.waiters > 0 {
		a.mu.Unlock()
		return
	}
	if a.under[p.key] == p {
		delete(a.under, p.key)
		a.ignoring = a.ignoring || !p.askedLocked()
	}
	p.stop()
	jobs := slices.Clone(p.jobs)
	a.mu.Unlock()
	for _, j := range jobs {
		<-j.done
	}
	if err := a.host.Sweep(ctx, p.leftOver()); err != nil {
		a.o.Log.Warn("layers of a pull that was given up are left over", "ref", p.name(),
			"err", err)
	}
}

// leftOver returns what the pull has brought, but for the layers of other pulls under way: they may
// be about to be asked for.
func (p *Pull) leftOver() []digest.Digest {
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.brought), func(d digest.Digest) bool {
		for _, other := range p.all.under {
			if other.startedLocked(d) {
				return true
			}
		}
		return false
	})
}
