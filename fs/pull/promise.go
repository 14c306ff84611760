package pull

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

// promiseFrom is how long a registry takes to answer, connection included, from which on layers are
// promised: nearer ones send the index itself in about that time.
const promiseFrom = 5 * time.Millisecond

// brokenFor is how long a layer is not promised whose coming has failed, unless it comes or goes.
const brokenFor = time.Hour

// promises is the layers that were promised before they were here. The zero value is ready.
type promises struct {
	mu sync.Mutex
	// closed when the layer has come, or its coming has failed
	open     map[digest.Digest]chan struct{}
	failedAt map[digest.Digest]time.Time // when the coming of one has failed
}

// Promise returns what the registry tells of a layer, as soon as it is known that the image has an
// index with it: the index itself may still be on its way. ok is false where that cannot be said,
// because the layer was here before its pull, is to be downloaded whole, or was promised and did
// not come. Pair it with Promised.
func (a *Pulls) Promise(ctx context.Context, r Request) (l artifact.Layer, ok bool) {
	if here, err := a.o.Store.Layer(r.Layer); err == nil {
		here.Close()
		if p := a.busyPull(r); p != nil { // it may have yet to be mounted, or one below it
			<-p.told // before the index, which has come
			return p.promise(r)
		}
		return artifact.Layer{}, false
	}
	p, err := a.Begin(r)
	if err != nil {
		return artifact.Layer{}, false
	}
	defer p.Leave()
	j := a.jobsOf(p, r)
	select {
	case <-p.told:
	case <-j.done:
		return artifact.Layer{}, false
	case <-ctx.Done():
		return artifact.Layer{}, false
	}
	return p.promise(r)
}

// promise is Promise, of what the registry has told the pull.
func (p *Pull) promise(r Request) (artifact.Layer, bool) {
	l, ok := p.toldOf[r.Layer]
	return l, ok && (r.DiffID == "" || r.DiffID == l.DiffID) && p.all.o.Limits.Layer(l.Size) == nil
}

// Promises says whether Promise is worth a call for a layer.
func (a *Pulls) Promises(d digest.Digest) bool { return !a.o.Whole && !a.promises.failed(d) }

// Promised notes that somebody relies on a promise, until Settle.
func (a *Pulls) Promised(d digest.Digest) { a.promises.add(d) }

// Settle notes what became of a layer that may have been promised: it has come, it has gone, or its
// coming has failed.
func (a *Pulls) Settle(d digest.Digest, err error) { a.promises.settle(d, err) }

// busyPull returns the pull of a layer's image if it has brought the layer, and is still busy with
// this one or others of the image.
func (a *Pulls) busyPull(r Request) *Pull {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.under[keyOf(r.Ref, r.Manifest)]
	if p == nil || !slices.Contains(p.brought, r.Layer) {
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

// AwaitPromised returns when the layers that are promised now have come, or their coming has
// failed, but after a second at the latest.
func (a *Pulls) AwaitPromised() { a.promises.wait(promisePatience) }

// layersTold returns what the registry, which took so long to answer, tells of the layers of the index
// that is tried first.
func (p *Pull) layersTold(
	indexes []ocispec.Descriptor, took time.Duration,
) map[digest.Digest]artifact.Layer {
	if len(indexes) == 0 || took < promiseFrom {
		return nil
	}
	layers, err := artifact.Layers(indexes[0])
	if err != nil {
		p.all.o.Log.Warn("what the registry tells of an index is not usable", "ref", p.name(),
			"err", err)
	}
	told := map[digest.Digest]artifact.Layer{}
	for _, l := range layers {
		told[l.Digest] = l
	}
	return told
}

func (s *promises) add(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open, s.failedAt = map[digest.Digest]chan struct{}{}, map[digest.Digest]time.Time{}
	}
	if s.open[d] == nil {
		s.open[d] = make(chan struct{})
	}
}

func (s *promises) failed(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.failedAt[d]
	return ok && time.Since(at) < brokenFor
}

// settle notes what became of a layer that may have been promised.
func (s *promises) settle(d digest.Digest, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.failedAt, d) // it has come after all, or is gone
	}
	if c := s.open[d]; c != nil {
		close(c)
		delete(s.open, d)
		if err != nil {
			maps.DeleteFunc(s.failedAt, func(_ digest.Digest, at time.Time) bool {
				return time.Since(at) >= brokenFor
			})
			s.failedAt[d] = time.Now()
		}
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
