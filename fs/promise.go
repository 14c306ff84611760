package fs

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index/artifact"
)

// promiseFrom is how long a registry takes to answer, connection included, from which on layers are promised: nearer ones send the
// index itself in about that time.
const promiseFrom = 5 * time.Millisecond

// brokenFor is how long a layer is not promised whose coming has failed, unless it comes or goes.
const brokenFor = time.Hour

// promises is the layers that were promised before they were here. The zero value is ready.
type promises struct {
	mu     sync.Mutex
	open   map[digest.Digest]chan struct{} // closed when the layer has come, or its coming has failed
	broken map[digest.Digest]time.Time     // when the coming of one has failed
}

// Promise returns what Mount is going to return for a layer, as soon as it is known that the image has an index with it: the index
// itself may still be on its way, so that containerd need not wait for it before it goes on. ok is false where that cannot be said,
// because the layer was here before, or is to be downloaded whole, or looks different on other layers; then there is only Mount. Who
// has got a promise calls Mount all the same, before anybody is to see the layer.
func (t *Table) Promise(ctx context.Context, l Layer, below []Below) (m Mounted, ok bool) {
	if t.o.Mode == Local || t.o.LocalIndexes || l.Digest.Validate() != nil || t.promises.failed(l.Digest) {
		return Mounted{}, false
	}
	if _, err := t.kernel(); err != nil {
		return Mounted{}, false
	}
	t.heed(l, below)
	if err := t.want(ctx, l.Digest); err != nil {
		return Mounted{}, false
	}
	if here, err := t.store.Layer(l.Digest); err == nil {
		here.Close()
		if p := t.bringer(l); p != nil { // it may have yet to be mounted, or one below it
			<-p.told // before the index, which has come
			return p.promise(ctx, l, below)
		}
		return Mounted{}, false
	}
	p, err := t.begin(l, below)
	if err != nil {
		return Mounted{}, false
	}
	defer t.leave(p)
	j := t.jobsOf(p, l)
	select {
	case <-p.told:
	case <-j.done:
		return Mounted{}, false
	case <-ctx.Done():
		return Mounted{}, false
	}
	return p.promise(ctx, l, below)
}

// promise is Promise, of what the registry has told the pull.
func (p *pull) promise(ctx context.Context, l Layer, below []Below) (m Mounted, ok bool) {
	told, ok := p.listed[l.Digest]
	if !ok || l.DiffID != "" && l.DiffID != told.DiffID || p.t.o.Limits.layer(told.Size) != nil {
		return Mounted{}, false
	}
	dir, err := p.t.names.path(spotOf(l.Digest, below))
	if err != nil {
		p.t.log.WarnContext(ctx, "a layer is not promised", "layer", l.Digest, "err", err)
		return Mounted{}, false
	}
	p.t.promises.add(l.Digest)
	return Mounted{Dir: dir, DiffID: told.DiffID, Size: told.Size, Inodes: told.Inodes}, true
}

// bringer returns the pull of a layer's image if it has brought the layer, and is still busy with this one or others of the image.
func (t *Table) bringer(l Layer) *pull {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.pulls[keyOf(l.Ref, l.Manifest)]
	if p == nil || !slices.Contains(p.came, l.Digest) {
		return nil
	}
	for _, j := range p.jobs {
		select {
		case <-j.done:
		default:
			return p
		}
	}
	return nil
}

// promisePatience is how long AwaitPromised waits.
const promisePatience = time.Second

// AwaitPromised returns when the layers that are promised now have come, or their coming has failed, but after a second at the
// latest. Status then shows those of a pull that has just ended.
func (t *Table) AwaitPromised() { t.promises.wait(promisePatience) }

// list returns what the registry, which took so long to answer, tells of the layers of the index that is tried first.
func (p *pull) list(indexes []ocispec.Descriptor, took time.Duration) map[digest.Digest]artifact.Layer {
	if len(indexes) == 0 || took < promiseFrom {
		return nil
	}
	layers, err := artifact.Layers(indexes[0])
	if err != nil {
		p.t.log.Warn("what the registry tells of an index is not usable", "ref", p.name(), "err", err)
	}
	listed := map[digest.Digest]artifact.Layer{}
	for _, l := range layers {
		listed[l.Digest] = l
	}
	return listed
}

func (s *promises) add(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open, s.broken = map[digest.Digest]chan struct{}{}, map[digest.Digest]time.Time{}
	}
	if s.open[d] == nil {
		s.open[d] = make(chan struct{})
	}
}

func (s *promises) failed(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.broken[d]
	return ok && time.Since(at) < brokenFor
}

// settle notes what became of a layer that may have been promised.
func (s *promises) settle(d digest.Digest, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.broken, d)
	}
	if c := s.open[d]; c != nil {
		close(c)
		delete(s.open, d)
		if err != nil {
			maps.DeleteFunc(s.broken, func(_ digest.Digest, at time.Time) bool {
				return time.Since(at) >= brokenFor
			})
			s.broken[d] = time.Now()
		}
	}
	if err == nil {
		delete(s.broken, d) // it has come after all, or is gone
	}
}

// wait returns when all that is promised now has come or failed, or after so long.
func (s *promises) wait(most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	s.mu.Lock()
	var open []chan struct{}
	for _, c := range s.open {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		select {
		case <-c:
		case <-timer.C:
			return
		}
	}
}
