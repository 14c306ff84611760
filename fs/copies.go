package fs

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/profile/published"
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
	image *remote.Image
	copy  *published.Copy
}

func (c *copies) add(image *remote.Image, copied *published.Copy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, place{image, copied})
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

// of returns the copy of a layer's spans, nil if there is none. What is read of it is taken from e where that has it.
func (c *copies) of(d digest.Digest, e *early) *layer.Copy {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.all {
		frames := map[int]index.Range{}
		for _, f := range p.copy.Frames {
			if f.Layer == d {
				frames[f.Span] = f.Range
			}
		}
		if len(frames) > 0 {
			return &layer.Copy{Source: newCopySource(p.image, e, p.copy.Blob), Frames: frames}
		}
	}
	return nil
}
