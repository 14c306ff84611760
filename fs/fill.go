package fs

import (
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
)

// fillDelay is how long the fill of a layer that nobody reads waits: a pull, and the start that follows it, have
// the machine and the line for themselves.
const fillDelay = 2 * time.Second

// filling is the part of a live layer that starts its fill, once.
type filling struct {
	started atomic.Bool
	timer   *time.Timer
}

// startFill brings the rest of the layer in the background.
func (v *live) startFill() {
	if !v.filling.started.Swap(true) {
		v.t.fetch.Fill(v.digest)
	}
}

// wasRead is told of every read from the kernel. The first one starts the fill of all layers of
// the image: a container is at work, and will read on.
func (v *live) wasRead() {
	if v.filling.started.Load() {
		return
	}
	v.t.fetch.Started()
	v.startFill()
	ref := v.origins.latest()
	for _, other := range v.t.opened() {
		if other.origins.latest() == ref {
			other.startFill()
		}
	}
}

// opened returns the layers that are open.
func (t *Table) opened() []*live {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*live
	for _, s := range t.live {
		if s.ready.Load() {
			if v, err := s.open(); err == nil {
				all = append(all, v)
			}
		}
	}
	return all
}

// replay starts to fetch what a profile names. Layers that are not open yet follow when they are.
func (t *Table) replay(p *profile.Profile) *fetch.Replay {
	ranges := make([]fetch.Range, len(p.Ranges))
	for i, r := range p.Ranges {
		ranges[i] = fetch.Range{Layer: r.Layer, Off: r.Off, Size: r.Size}
	}
	return t.fetch.Replay(ranges)
}

// choose returns the profile to replay: what this node has seen of the image and what was published of it.
func (t *Table) choose(manifest digest.Digest, published *profile.Profile) *profile.Profile {
	if t.o.Profiles == nil {
		return published
	}
	own, err := t.o.Profiles.Load(manifest)
	if err != nil {
		return published // there is none, or it is damaged and will be replaced
	}
	return profile.Merge(published, own)
}
