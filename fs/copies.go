package fs

import (
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote"
)

// copies are where pulls under way have found copies of what starts read.
type copies struct {
	mu  sync.Mutex
	all []foundCopy
}

// foundCopy is a copy, and the image beside which it lies.
type foundCopy struct {
	image      *remote.Image
	repository string
	windows    digest.Digest // of the index that the copy's spans are of
	copy       *published.Copy
}

func (c *copies) add(f foundCopy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, f)
}

func (c *copies) remove(copied *published.Copy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = slices.DeleteFunc(c.all, func(f foundCopy) bool { return f.copy == copied })
}

// of returns the copy of a layer's spans, nil if none is known of its index in a repository that vouches for that. What is read of it is
// taken from e where that has it.
func (c *copies) of(rec *store.Record, e *early) *layer.Copy {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.all {
		if f.windows != rec.Windows.Blob || !proof.Vouches(rec, f.repository) {
			continue
		}
		frames := map[int]index.Range{}
		for _, frame := range f.copy.Frames {
			if frame.Layer == rec.Layer {
				frames[frame.Span] = frame.Range
			}
		}
		if len(frames) > 0 {
			return &layer.Copy{Source: newCopySource(f.image, e, f.copy.Blob), Frames: frames}
		}
	}
	return nil
}
