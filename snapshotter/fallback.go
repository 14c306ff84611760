package snapshotter

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// fallbackKept is how long a fallback is shown, and fallbackMax how many are: enough for a
	// person to see them.
	fallbackKept = 24 * time.Hour
	fallbackMax  = 100
	// fallbackPull is how long a layer's fallback rules for the layers above it: longer than a pull
	// takes from one layer to the next. If it takes longer, the layers above are served although
	// containerd fetches them, which costs time only.
	fallbackPull = 10 * time.Minute
)

// Fallback is an image of which a layer, and so all above it, became ordinary snapshots.
type Fallback struct {
	Ref    string
	Layer  digest.Digest // the lowest layer that was not served
	Reason string
	Time   time.Time
}

// fallbacks remembers, in memory, which images fell back lately. The zero value is ready.
type fallbacks struct {
	mu     sync.Mutex
	images map[image]Fallback
	chains map[string]time.Time // chain IDs that containerd unpacks, and since when
}

type image struct {
	ref      string
	manifest digest.Digest
}

// add notes a fallback. It reports whether that is news: not so for the layers above one that fell
// back.
func (f *fallbacks) add(now time.Time, req request, reason string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images == nil {
		f.images, f.chains = map[image]Fallback{}, map[string]time.Time{}
	}
	f.pruneLocked(now)
	f.chains[req.target.String()] = now
	key := image{req.layer.Ref, req.layer.Manifest}
	if old, ok := f.images[key]; ok && old.Layer != req.layer.Digest {
		return false
	}
	f.images[key] = Fallback{Ref: req.layer.Ref, Layer: req.layer.Digest, Reason: reason, Time: now}
	return true
}

// pruneLocked makes room for one more.
func (f *fallbacks) pruneLocked(now time.Time) {
	for target, at := range f.chains {
		if now.Sub(at) > fallbackPull {
			delete(f.chains, target)
		}
	}
	var oldest image
	for key, fb := range f.images {
		if now.Sub(fb.Time) > fallbackKept {
			delete(f.images, key)
		} else if o, ok := f.images[oldest]; !ok || fb.Time.Before(o.Time) {
			oldest = key
		}
	}
	if len(f.images) >= fallbackMax {
		delete(f.images, oldest)
	}
}

// above reports whether the chain with this ID fell back in what is likely still the same pull.
func (f *fallbacks) above(now time.Time, chainID string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.chains[chainID]
	return ok && now.Sub(at) <= fallbackPull
}

// clear drops the fallback of a layer that was served in the end.
func (f *fallbacks) clear(req request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := image{req.layer.Ref, req.layer.Manifest}
	if f.images[key].Layer == req.layer.Digest {
		delete(f.images, key)
	}
	delete(f.chains, req.target.String())
}

// Fallbacks returns the images that lately fell back to ordinary snapshots, latest first.
func (s *Snapshotter) Fallbacks() []Fallback {
	s.fallbacks.mu.Lock()
	defer s.fallbacks.mu.Unlock()
	s.fallbacks.pruneLocked(s.now())
	list := make([]Fallback, 0, len(s.fallbacks.images))
	for _, fb := range s.fallbacks.images {
		list = append(list, fb)
	}
	slices.SortFunc(list, func(a, b Fallback) int { return b.Time.Compare(a.Time) })
	return list
}

// fallBack notes why a layer becomes an ordinary snapshot.
func (s *Snapshotter) fallBack(ctx context.Context, req request, reason string) {
	s.counters.fallbacks.Add(1)
	if s.fallbacks.add(s.now(), req, reason) {
		s.log.WarnContext(ctx, "layer not served: containerd fetches it and those above it",
			"ref", req.layer.Ref, "layer", req.layer.Digest, "reason", reason)
		return
	}
	s.log.DebugContext(ctx, "layer not served, nor one under it", "ref", req.layer.Ref,
		"layer", req.layer.Digest, "reason", reason)
}
