package published

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index"
)

// annotationEarly holds the early ranges as JSON; see docs/profile-format.md.
const annotationEarly = "dev.mica.profile.early.v1"

// MediaTypeCopy is the type of a copy of the early ranges.
const MediaTypeCopy = "application/vnd.mica.profile.early.v1"

// Bounds of the early ranges: their bytes with a copy and without one, their number, the blobs that they lie in, and the characters of
// the annotation, which a pull waits for with the list of referrers: that of an image with a copy of 48 MB has 6 KB in all.
const (
	MaxCopy        = 64 << 20
	MaxEarly       = 8 << 20
	maxEarlyRanges = 256
	maxEarlyBlobs  = 32
	maxEarlyText   = 16 << 10
)

// Near ranges of a blob are made one of up to earlyRange bytes, if no more than earlyGap lies between them. Windows come early if a
// layer has no more than earlyWindows bytes of them.
const (
	earlyRange   = 4 << 20
	earlyGap     = 64 << 10
	earlyWindows = 1 << 20
)

// BlobRange is a range of a blob, bytes.
type BlobRange struct {
	Blob      digest.Digest
	BlobSize  int64
	Off, Size int64
}

// Early is what a start reads first, as an artifact says it.
type Early struct {
	Ranges []BlobRange
	// Copy is a blob that holds the bytes of the ranges, one behind the other; no digest: there is none. One request brings of it what
	// would take one for each range.
	Copy ocispec.Descriptor
}

// earlyText is the JSON. A range is the blob's number, offset and size.
type earlyText struct {
	Blobs  []earlyBlob   `json:"blobs"`
	Ranges [][3]int64    `json:"ranges"`
	Copy   digest.Digest `json:"copy,omitempty"`
}

type earlyBlob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// First returns where in the image's blobs that lies which a replay of a profile fetches first, of at most so many bytes. Without a copy
// more than MaxEarly are of no use, and with one more than MaxCopy. windows is the index's blob of windows.
func First(p *profile.Profile, b *index.Bundle, windows ocispec.Descriptor, most int64) ([]BlobRange, error) {
	f := first{bundle: b, windows: windows, most: most, layers: map[digest.Digest]*firstLayer{}}
	for _, l := range b.Layers() {
		f.layers[l.Layer] = &firstLayer{BundleLayer: l}
	}
	ranges := make([]fetch.Range, len(p.Ranges))
	for i, r := range p.Ranges {
		ranges[i] = fetch.Range{Layer: r.Layer, Off: r.Off, Size: r.Size}
	}
	for _, r := range fetch.Arrange(ranges) {
		if l := f.layers[r.Layer]; l != nil {
			if more, err := f.add(l, r); !more {
				return f.ranges, err
			}
		}
	}
	return f.ranges, nil
}

// first is the work of First.
type first struct {
	bundle  *index.Bundle
	windows ocispec.Descriptor
	most    int64
	layers  map[digest.Digest]*firstLayer
	ranges  []BlobRange
	bytes   int64
}

type firstLayer struct {
	index.BundleLayer
	spans   index.Spans // nil: nothing of the layer was added yet
	taken   map[int]bool
	windows bool // were added
}

// add adds the spans that hold a range; more says that there is room for further ones.
func (f *first) add(l *firstLayer, r fetch.Range) (more bool, err error) {
	if l.spans == nil {
		if l.spans, err = f.bundle.Spans(l.Layer); err != nil {
			return false, err
		}
		l.taken = map[int]bool{}
	}
	for i := l.spans.Find(r.Off); i >= 0 && i < len(l.spans) && l.spans[i].Device < r.Off+r.Size; i++ {
		if l.taken[i] {
			continue
		}
		l.taken[i] = true
		s := &l.spans[i]
		// All windows of a layer come with the first span that needs one.
		if w := l.Windows; s.Window.Size > 0 && !l.windows && w.Size <= earlyWindows {
			l.windows = true
			if !f.put(BlobRange{f.windows.Digest, f.windows.Size, w.Off, w.Size}) {
				return false, nil
			}
		}
		if !f.put(BlobRange{l.Layer, l.LayerSize, s.Blob, s.BlobSize}) {
			return false, nil
		}
	}
	return true, nil
}

// put adds a range, to one that ends before it if there is one; false: there is no room.
func (f *first) put(g BlobRange) bool {
	i, more := within(f.ranges, g, earlyRange)
	if i < 0 {
		more = g.Size
	}
	if f.bytes+more > f.most || i < 0 && len(f.ranges) == maxEarlyRanges {
		return false
	}
	f.bytes += more
	if i < 0 {
		f.ranges = append(f.ranges, g)
	} else {
		f.ranges[i].Size += more
	}
	return true
}

// within returns which of the ranges g can be added to, so that it has no more than most bytes, and how many more it then has; -1: to none.
func within(ranges []BlobRange, g BlobRange, most int64) (i int, more int64) {
	for i, o := range ranges {
		end := o.Off + o.Size
		if o.Blob == g.Blob && o.BlobSize == g.BlobSize && g.Off >= o.Off && g.Off <= end+earlyGap && g.Off+g.Size-o.Off <= most {
			return i, max(g.Off+g.Size-end, 0)
		}
	}
	return -1, 0
}

// Join makes one range of those that are near each other, as far as it has no more than most bytes. It stands where the first of them stood.
func Join(ranges []BlobRange, most int64) (joined []BlobRange) {
	for _, g := range ranges {
		if i, more := within(joined, g, most); i >= 0 {
			joined[i].Size += more
		} else {
			joined = append(joined, g)
		}
	}
	return joined
}

// encodeEarly returns the annotation; "" where there is nothing to say, or too much. made is the digest of the copy, "" if there is none.
func encodeEarly(ranges []BlobRange, made digest.Digest) (string, error) {
	t := earlyText{Copy: made}
	number := map[digest.Digest]int64{}
	for _, r := range ranges {
		n, ok := number[r.Blob]
		if !ok {
			n = int64(len(t.Blobs))
			number[r.Blob] = n
			t.Blobs = append(t.Blobs, earlyBlob{r.Blob, r.BlobSize})
		}
		t.Ranges = append(t.Ranges, [3]int64{n, r.Off, r.Size})
	}
	if len(t.Ranges) == 0 || len(t.Ranges) > maxEarlyRanges || len(t.Blobs) > maxEarlyBlobs {
		return "", nil
	}
	b, err := json.Marshal(t)
	if err != nil || len(b) > maxEarlyText {
		return "", err
	}
	return string(b), nil
}

// EarlyRanges returns what an entry of a list of referrers says of the ranges that a start reads first, in that order and of at
// most MaxCopy bytes, MaxEarly without a copy; none if it says nothing. Whether these are blobs of the image the caller has to see.
func EarlyRanges(d ocispec.Descriptor) (Early, error) {
	text := d.Annotations[annotationEarly]
	if text == "" {
		return Early{}, nil
	}
	wrong := func(format string, args ...any) (Early, error) {
		return Early{}, fmt.Errorf("annotation %s of %s: "+format, append([]any{annotationEarly, d.Digest}, args...)...)
	}
	if len(text) > maxEarlyText {
		return wrong("%d characters, at most %d wanted", len(text), maxEarlyText)
	}
	var t earlyText
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return wrong("%w", err)
	}
	if len(t.Ranges) > maxEarlyRanges || len(t.Blobs) > maxEarlyBlobs {
		return wrong("%d ranges of %d blobs, at most %d of %d wanted", len(t.Ranges), len(t.Blobs), maxEarlyRanges, maxEarlyBlobs)
	}
	for i, b := range t.Blobs {
		if err := b.Digest.Validate(); err != nil {
			return wrong("blob %q: %w", b.Digest, err)
		}
		if slices.ContainsFunc(t.Blobs[:i], func(o earlyBlob) bool { return o.Digest == b.Digest }) {
			return wrong("blob %s is named twice", b.Digest)
		}
	}
	if t.Copy != "" {
		if err := t.Copy.Validate(); err != nil {
			return wrong("copy %q: %w", t.Copy, err)
		}
	}
	var ranges []BlobRange
	most, bytes := int64(MaxEarly), int64(0)
	if t.Copy != "" {
		most = MaxCopy
	}
	for _, r := range t.Ranges {
		n, off, size := r[0], r[1], r[2]
		if n < 0 || n >= int64(len(t.Blobs)) {
			return wrong("range of blob %d of %d", n, len(t.Blobs))
		}
		b := t.Blobs[n]
		if off < 0 || size <= 0 || size > most-bytes || off > b.Size || size > b.Size-off {
			return wrong("range [%d, +%d) of a blob of %d bytes", off, size, b.Size)
		}
		bytes += size
		ranges = append(ranges, BlobRange{b.Digest, b.Size, off, size})
	}
	e := Early{Ranges: ranges}
	if t.Copy != "" && bytes > 0 {
		e.Copy = ocispec.Descriptor{MediaType: MediaTypeCopy, Digest: t.Copy, Size: bytes}
	}
	return e, nil
}
