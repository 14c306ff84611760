package published

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/bundle"
)

// annotationCopy says what lies where in the copy, as JSON; see docs/profile-format.md.
const annotationCopy = "dev.mica.profile.copy.v1"

// MediaTypeCopy is the type of a copy of what a start reads.
const MediaTypeCopy = "application/vnd.mica.profile.copy.v1"

// Bounds of a copy: its bytes, the layers that it has spans of, and the characters of the
// annotation, which a pull waits for with the list of referrers: that of a copy of 38 MB has 2 KB.
const (
	MaxCopy       = 64 << 20
	maxCopyLayers = 64
	maxCopyText   = 16 << 10
	maxFrameBytes = 8 << 10 // of the list of frames, before base64
)

// Frame is a span of a layer in a copy: zstd frames of its device bytes.
type Frame struct {
	Layer digest.Digest
	Span  int // its number in the index
	index.Range
}

// Copy is a blob that holds what a start reads, in whole spans: they take fewer bytes than in the
// layers, and few requests bring them.
type Copy struct {
	Blob   ocispec.Descriptor
	Trees  digest.Digest // of the index that the spans are of
	Frames []Frame       // one behind the other, in about the order of reading; they fill the blob
}

// copyText is the JSON.
type copyText struct {
	Copy   digest.Digest   `json:"copy"`
	Trees  digest.Digest   `json:"trees"`
	Layers []digest.Digest `json:"layers"`
	Frames string          `json:"frames"`
}

// LayerSpan is a span of a layer of an image.
type LayerSpan struct {
	bundle.Record
	Number int
	Span   index.Span
}

// Spans returns the spans that a replay of a profile fetches, in the order in which it does: of the
// first, some more than a copy has room for.
func Spans(p *profile.Profile, b *bundle.Bundle) (all []LayerSpan, err error) {
	layers := map[digest.Digest]*layerSpans{}
	for _, l := range b.Layers() {
		layers[l.Layer] = &layerSpans{Record: l, taken: map[int]bool{}}
	}
	ranges := make([]fetch.Range, len(p.Ranges))
	for i, r := range p.Ranges {
		ranges[i] = fetch.Range{Layer: r.Layer, Off: r.Off, Size: r.Size}
	}
	room := int64(2 * MaxCopy) // bytes of the layers
	for _, r := range fetch.Arrange(ranges) {
		l := layers[r.Layer]
		if l == nil {
			continue
		}
		if l.spans == nil {
			if l.spans, err = b.Spans(l.Layer); err != nil {
				return nil, err
			}
		}
		for i := l.spans.Find(r.Off); i >= 0 && i < len(l.spans) &&
			l.spans[i].Device < r.Off+r.Size; i++ {
			if !l.taken[i] {
				if room -= l.spans[i].BlobSize; room < 0 {
					return all, nil
				}
				l.taken[i] = true
				all = append(all, LayerSpan{l.Record, i, l.spans[i]})
			}
		}
	}
	return all, nil
}

type layerSpans struct {
	bundle.Record
	spans index.Spans
	taken map[int]bool
}

// AddCopy adds a copy of spans of the index whose trees have that digest, each as zstd frames, as
// many of the first as there is room for: a reader of the list of referrers can begin with it
// before it has an index.
func (a *Artifact) AddCopy(trees digest.Digest, spans []LayerSpan, frames [][]byte) error {
	c := Copy{Trees: trees}
	var list frameList
	for i, s := range spans {
		f := Frame{s.Layer, s.Number,
			index.Range{Off: int64(len(a.Copied)), Size: int64(len(frames[i]))}}
		if f.Off+f.Size > MaxCopy || !list.add(f) {
			break
		}
		c.Frames = append(c.Frames, f)
		a.Copied = append(a.Copied, frames[i]...)
	}
	if len(c.Frames) == 0 {
		return nil
	}
	a.Copy = ocispec.Descriptor{MediaType: MediaTypeCopy, Digest: digest.FromBytes(a.Copied),
		Size: int64(len(a.Copied))}
	c.Blob = a.Copy
	b, err := json.Marshal(c.text())
	a.copied = string(b)
	return err
}

// text returns the copy as the annotation says it.
func (c *Copy) text() copyText {
	var list frameList
	for _, f := range c.Frames {
		list.add(f)
	}
	return copyText{Copy: c.Blob.Digest, Trees: c.Trees, Layers: list.layers,
		Frames: base64.StdEncoding.EncodeToString(list.bytes())}
}

// frameList is a list of frames as the annotation has it: runs of spans that follow each other in a
// layer; of each, varints: the layer's number, the first span's, how many there are, and the bytes
// of each frame.
type frameList struct {
	layers []digest.Digest
	done   []byte // complete runs
	layer  int    // of the last run
	first  int
	sizes  []int64
}

// add adds a frame; false: there is no room.
func (l *frameList) add(f Frame) bool {
	n := slices.Index(l.layers, f.Layer)
	switch {
	case len(l.sizes) > 0 && n == l.layer && f.Span == l.first+len(l.sizes):
		l.sizes = append(l.sizes, f.Size)
	case n < 0 && len(l.layers) == maxCopyLayers:
		return false
	default:
		if n < 0 {
			n = len(l.layers)
			l.layers = append(l.layers, f.Layer)
		}
		l.done = l.bytes()
		l.layer, l.first, l.sizes = n, f.Span, []int64{f.Size}
	}
	return len(l.done)+binary.MaxVarintLen64*3+binary.MaxVarintLen32*len(l.sizes) <= maxFrameBytes
}

func (l *frameList) bytes() []byte {
	b := slices.Clip(l.done)
	if len(l.sizes) == 0 {
		return b
	}
	for _, n := range []int{l.layer, l.first, len(l.sizes)} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for _, n := range l.sizes {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

// CopyOf returns the copy that an entry of a list of referrers tells of, of at most MaxCopy bytes;
// ok is false where it tells of none. Whether the index is the image's the caller has to see.
func CopyOf(d ocispec.Descriptor) (c Copy, ok bool, err error) {
	text, ok := d.Annotations[annotationCopy]
	if !ok {
		return Copy{}, false, nil
	}
	if c, err = parseCopy(text); err != nil {
		return Copy{}, false, fmt.Errorf("annotation %s of %s: %w", annotationCopy, d.Digest, err)
	}
	return c, true, nil
}

func parseCopy(text string) (Copy, error) {
	if len(text) > maxCopyText {
		return Copy{}, fmt.Errorf("%d characters, at most %d wanted", len(text), maxCopyText)
	}
	var t copyText
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return Copy{}, err
	}
	if len(t.Layers) > maxCopyLayers {
		return Copy{}, fmt.Errorf("%d layers, at most %d wanted", len(t.Layers), maxCopyLayers)
	}
	for _, d := range append([]digest.Digest{t.Copy, t.Trees}, t.Layers...) {
		if err := d.Validate(); err != nil {
			return Copy{}, fmt.Errorf("%q: %w", d, err)
		}
	}
	for i, d := range t.Layers {
		if slices.Contains(t.Layers[:i], d) {
			return Copy{}, fmt.Errorf("layer %s is named twice", d)
		}
	}
	b, err := base64.StdEncoding.DecodeString(t.Frames)
	if err != nil {
		return Copy{}, fmt.Errorf("frames: %w", err)
	}
	c := Copy{Trees: t.Trees}
	if c.Frames, err = parseFrames(b, t.Layers); err != nil {
		return Copy{}, fmt.Errorf("frames: %w", err)
	}
	last := c.Frames[len(c.Frames)-1]
	c.Blob = ocispec.Descriptor{MediaType: MediaTypeCopy, Digest: t.Copy,
		Size: last.Off + last.Size}
	return c, nil
}

// parseFrames returns at least one frame.
func parseFrames(b []byte, layers []digest.Digest) (frames []Frame, err error) {
	next := func(what string, least, most int64) int64 {
		v, n := binary.Uvarint(b)
		if err == nil && (n <= 0 || v < uint64(least) || v > uint64(most)) {
			err = fmt.Errorf("%s %d behind %d frames, %d to %d wanted", what, v, len(frames), least,
				most)
		}
		b = b[max(n, 0):]
		return int64(v)
	}
	type place struct{ layer, span int64 }
	if len(layers) == 0 {
		return nil, errors.New("of no layer")
	}
	seen := map[place]bool{}
	off := int64(0)
	for first := true; first || len(b) > 0; first = false {
		layer := next("layer", 0, int64(len(layers))-1)
		span := next("span", 0, index.MaxSpans-1)
		count := next("number of spans", 1, index.MaxSpans-span)
		for ; err == nil && count > 0; count-- {
			size := next("size", 1, min(index.MaxSpanSize, MaxCopy-off))
			if err != nil {
				break
			}
			at := place{layer, span}
			if seen[at] {
				return nil, fmt.Errorf("span %d of layer %s is named twice", span, layers[layer])
			}
			seen[at] = true
			frames = append(frames,
				Frame{layers[layer], int(span), index.Range{Off: off, Size: size}})
			off += size
			span++
		}
		if err != nil {
			return nil, err
		}
	}
	return frames, nil
}
