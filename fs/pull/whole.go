package pull

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// wholeKept is how long an image that was not lazy is shown, and wholeMost how many are.
	wholeKept = 24 * time.Hour
	wholeMost = 100
	// wholeLeast is the size in bytes of blobs that somebody is told of: less comes in a moment.
	wholeLeast = 1 << 20
)

// leftOut is why a layer is not lazy that is not in its image's index.
const leftOut = "the image's index leaves it out"

// noIndex is why layers of an image without an index are not lazy.
const noIndex = "no index of it was found"

// Whole is an image of which layers were downloaded whole, for which a container waited.
type Whole struct {
	Ref    string
	Layers []digest.Digest
	Size   int64     // of their blobs, bytes
	Reason string    // of the last of them
	Time   time.Time // at which the last of them had come
}

// noteWhole notes that a layer was downloaded whole, and why.
func (p *Pull) noteWhole(d ocispec.Descriptor, why string) {
	if why == leftOut && strings.HasSuffix(d.MediaType, "zstd") {
		why = "zstd cannot be read from the middle"
	}
	a, now := p.all, time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if why == noIndex { // before containerd has asked, ref is the repository alone
		why = fmt.Sprintf("%s (mica index create --push %s makes one)", noIndex, p.ref)
	}
	if p.whole == nil {
		p.whole = &Whole{Ref: p.ref}
		a.wholes = slices.DeleteFunc(a.wholes, func(w *Whole) bool {
			return now.Sub(w.Time) > wholeKept
		})
		a.wholes = append(a.wholes[max(0, len(a.wholes)-wholeMost+1):], p.whole)
	}
	w := p.whole
	w.Layers, w.Size = append(w.Layers, d.Digest), w.Size+d.Size
	w.Reason, w.Time = why, now
}

// Wholes returns the images that lately were not lazy, the latest first.
func (a *Pulls) Wholes() []Whole {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Whole
	for _, w := range slices.Backward(a.wholes) {
		if time.Since(w.Time) <= wholeKept && w.Size >= wholeLeast {
			copied := *w
			copied.Layers = slices.Clone(w.Layers)
			all = append(all, copied)
		}
	}
	return all
}
