package source

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
	all []FoundCopy
}

// FoundCopy is a copy, and the image beside which it lies.
type FoundCopy struct {
	Image      *remote.Image
	Repository string
	Windows    digest.Digest // of the index that the copy's spans are of
	Copy       *published.Copy
}

// AddCopy has CopyOf know of a copy, until it is removed.
func (e *Prefetch) AddCopy(f FoundCopy) (remove func()) {
	c := &e.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, f)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all = slices.DeleteFunc(c.all, func(o FoundCopy) bool { return o.Copy == f.Copy })
	}
}

// CopyOf returns the copy of a layer's spans, nil if none is known of its index in a repository
// that vouches for that.
func (e *Prefetch) CopyOf(rec *store.Record) *layer.Copy {
	c := &e.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.all {
		if f.Windows != rec.Windows.Blob || !proof.Vouches(rec, f.Repository) {
			continue
		}
		frames := map[int]index.Range{}
		for _, frame := range f.Copy.Frames {
			if frame.Layer == rec.Layer {
				frames[frame.Span] = frame.Range
			}
		}
		if len(frames) > 0 {
			return &layer.Copy{Source: newCopy(f.Image, e, f.Copy.Blob), Frames: frames}
		}
	}
	return nil
}
