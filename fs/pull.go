package fs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/remote"
)

// pullIdle is how long a pull goes on for an image of which nobody waits for a layer:
// between two layers containerd is busy for some milliseconds; after a cancelled pull for ever.
const pullIdle = 30 * time.Second

// pullKey is what tells pulls apart: two references of one image share a pull.
type pullKey struct {
	repository string
	manifest   digest.Digest
}

func keyOf(ref string, manifest digest.Digest) pullKey {
	return pullKey{proof.RepositoryOf(ref), manifest}
}

// pull brings the layers of one image.
type pull struct {
	t     *Table
	key   pullKey
	image *remote.Image
	ctx   context.Context
	stop  context.CancelFunc

	asked chan struct{} // closed when containerd has asked for a layer; before, the image is only announced

	bundle    func() (*bundle, error)              // the image's index, nil if it has none
	told      chan struct{}                        // closed when listed is set, or never will be
	listed    map[digest.Digest]artifact.Layer     // what the registry tells of layers before the index is here
	manifest  func() ([]ocispec.Descriptor, error) // its layers, the lowest first
	roundTrip time.Duration                        // to the registry, about; for bundle alone
	// For bundle alone: how many requests of the image there had been when the pull began.
	before int64
	// How long bundle took to return nothing.
	waited time.Duration

	// Guarded by Table.mu:
	ref     string                 // the reference by which it is pulled
	lowest  digest.Digest          // its first layer, once that is known
	layers  map[digest.Digest]bool // of the image; nil until containerd has asked
	waiters int
	idle    *time.Timer
	jobs    []*job          // those that it has started
	came    []digest.Digest // layers that it has put into the store
	// Of the manifest, once it is here; and the downloads of layers under way.
	descs     []ocispec.Descriptor
	downloads map[digest.Digest]context.CancelCauseFunc
	// instead are layers that give way to those that it downloads.
	instead map[digest.Digest]*live
}

// job is the bringing of one layer, for all pulls that want it.
type job struct {
	pull  *pull
	layer digest.Digest
	done  chan struct{}
	err   error // valid when done is closed
}

// bring waits until the store has the layer.
func (t *Table) bring(ctx context.Context, l Layer, below []Below) error {
	p, err := t.begin(l, below)
	if err != nil {
		return err
	}
	defer t.leave(p)
	for {
		j := t.jobsOf(p, l)
		select {
		case <-j.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if j.err == nil || j.pull == p {
			if j.err != nil {
				p.inVain(l.Digest, j.err)
			}
			return j.err
		}
		// The layer failed for another image, whose registry may lack it or
		// refuse it. Ours may not.
	}
}

// begin joins the pull of a layer's image, and has its start recorded if it is the first. Pair it with leave.
func (t *Table) begin(l Layer, below []Below) (*pull, error) {
	p, err := t.join(l.Ref, l.Manifest)
	if err == nil && p.ask(l, below) {
		t.record(l, below)
	}
	return p, err
}

// jobsOf returns the job for a layer, and sees to those of the layers above it.
func (t *Table) jobsOf(p *pull, l Layer) *job {
	j := t.job(p, l.Digest)
	for _, d := range l.Image {
		t.job(p, d)
	}
	return j
}

// join returns the pull of an image, a new one if none is under way. Pair it with leave.
func (t *Table) join(ref string, manifest digest.Digest) (*pull, error) {
	image, err := t.o.Remote.Image(ref)
	if err != nil {
		return nil, err
	}
	key := keyOf(ref, manifest)
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.pulls[key]
	if p == nil {
		p = &pull{t: t, key: key, ref: ref, image: image, told: make(chan struct{}), asked: make(chan struct{})}
		p.downloads = map[digest.Digest]context.CancelCauseFunc{}
		p.ctx, p.stop = context.WithCancel(t.ctx)
		p.bundle = sync.OnceValues(p.find)
		p.manifest = sync.OnceValues(p.fetchManifest)
		t.pulls[key] = p
	}
	p.waiters++
	if p.idle != nil {
		p.idle.Stop()
		p.idle = nil
	}
	return p, nil
}

// leave ends a pull that nobody joins again soon.
func (t *Table) leave(p *pull) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.waiters--; p.waiters > 0 {
		return
	}
	p.idle = time.AfterFunc(pullIdle, func() { t.goes(p.end) })
}

// end stops a pull that nobody has joined again, and gives up what it brought for nobody.
func (p *pull) end(ctx context.Context) {
	t := p.t
	t.mu.Lock()
	if p.waiters > 0 {
		t.mu.Unlock()
		return
	}
	if t.pulls[p.key] == p {
		delete(t.pulls, p.key)
		t.deaf = t.deaf || !p.askedLocked()
	}
	p.stop()
	jobs := slices.Clone(p.jobs)
	t.mu.Unlock()
	for _, j := range jobs {
		<-j.done
	}
	if err := t.sweep(ctx, p.leftOver()); err != nil {
		t.log.Warn("layers of a pull that was given up are left over", "ref", p.name(), "err", err)
	}
}

// leftOver returns what the pull has brought, but for the layers of other pulls under way: they may be about to be asked for.
func (p *pull) leftOver() []digest.Digest {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.came), func(d digest.Digest) bool {
		for _, other := range p.t.pulls {
			if slices.ContainsFunc(other.jobs, func(j *job) bool { return j.layer == d }) {
				return true
			}
		}
		return false
	})
}

// lost ends the pulls, that nobody waits for, of images that have lost a layer: who asks for such an image again has it begun anew,
// with its replay.
func (t *Table) lost(d digest.Digest) {
	var over []*pull
	t.mu.Lock()
	for key, p := range t.pulls {
		p.came = slices.DeleteFunc(p.came, func(c digest.Digest) bool { return c == d })
		if p.idle != nil && p.askedLocked() && slices.ContainsFunc(p.jobs, func(j *job) bool { return j.layer == d }) {
			p.idle.Stop()
			delete(t.pulls, key)
			over = append(over, p)
		}
	}
	t.mu.Unlock()
	for _, p := range over {
		t.goes(p.end)
	}
}

// drop makes later calls begin anew where a pull has failed.
func (t *Table) drop(p *pull) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pulls[p.key] == p {
		delete(t.pulls, p.key)
	}
}

// job returns the job for a layer, started by p if nobody has, or only for an image that nobody has asked for.
func (t *Table) job(p *pull, d digest.Digest) *job {
	t.mu.Lock()
	j := t.jobs[d]
	if j != nil && (j.pull.askedLocked() || !p.askedLocked()) {
		t.mu.Unlock()
		return j
	}
	j = &job{pull: p, layer: d, done: make(chan struct{})}
	t.jobs[d] = j
	p.jobs = append(p.jobs, j)
	t.mu.Unlock()
	end := func(err error) {
		j.err = err
		if err != nil {
			t.drop(p) // before anybody is told, who may try again at once
		}
		t.mu.Lock()
		if t.jobs[d] == j {
			delete(t.jobs, d)
		}
		t.mu.Unlock()
		close(j.done)
	}
	if !t.goes(func(ctx context.Context) { end(p.try(ctx, d)) }) {
		end(errors.New("micad is stopping"))
	}
	return j
}

// try is prepare; a panic fails the layer, and nothing else.
func (p *pull) try(ctx context.Context, d digest.Digest) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p.t.panicked(v)
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return p.prepare(ctx, d)
}

// prepare brings a layer and mounts it, before containerd asks for it. A layer whose
// mount depends on those below it is left for Mount, which knows them.
func (p *pull) prepare(ctx context.Context, d digest.Digest) error {
	start := time.Now()
	release := func() {}
	defer func() { release() }()
	// From its index to its mount a layer waits for cores alone, and a container for the layer. Replays have begun by then.
	if err := p.bring(d, func() { release = p.t.budget.FreeCores() }); err != nil {
		return err
	}
	select {
	case <-p.asked:
	default:
		release()
		release = func() {}
		if err := p.awaitAsked(); err != nil {
			return err
		}
		release = p.t.budget.FreeCores()
	}
	brought := time.Now()
	v, err := p.t.stored(Layer{Ref: p.name(), Digest: d})
	if err != nil {
		return err
	}
	implicit, err := v.index.Implicit()
	if err != nil || len(implicit) > 0 {
		return err
	}
	s := spot{layer: d, lowest: p.isLowest(d)}
	if s.lowest {
		_, err = v.mount(ctx, "", nil)
	} else {
		_, err = v.mountSpot(ctx, s, &changes{}, "")
	}
	p.t.log.DebugContext(ctx, "layer prepared", "ref", p.name(), "layer", d, "bring", brought.Sub(start), "mount", time.Since(brought), "err", err)
	return err
}
