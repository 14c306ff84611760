package fs

import (
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote"
)

// copies are where pulls under way have found copies of what starts read.
type copies struct {
	mu  sync.Mutex
	all []place
}

// place is a copy, and the image beside which it lies.
type place struct {
	image      *remote.Image
	repository string
	windows    digest.Digest // of the index that the copy's spans are of
	copy       *published.Copy
}

func (c *copies) add(p place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, p)
}

func (c *copies) remove(copied *published.Copy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.all {
		if p.copy == copied {
			c.all = append(c.all[:i], c.all[i+1:]...)
			return
		}
	}
}

// of returns the copy of a layer's spans, nil if none is known of its index in a repository that vouches for that. What is read of it is
// taken from e where that has it.
func (c *copies) of(rec *store.Record, e *early) *layer.Copy {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.all {
		if p.windows != rec.Windows.Blob || !slices.Contains(rec.Vouchers, p.repository) {
			continue
		}
		frames := map[int]index.Range{}
		for _, f := range p.copy.Frames {
			if f.Layer == rec.Layer {
				frames[f.Span] = f.Range
			}
		}
		if len(frames) > 0 {
			return &layer.Copy{Source: newCopySource(p.image, e, p.copy.Blob), Frames: frames}
		}
	}
	return nil
}
