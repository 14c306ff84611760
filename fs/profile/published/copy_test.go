package published

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index"
)

var layerA, layerB, trees = digest.FromString("a"), digest.FromString("b"), digest.FromString("trees")

// spansOf returns spans of layers by their numbers, and a frame of each.
func spansOf(
	numbers map[digest.Digest][]int, order ...digest.Digest,
) (spans []LayerSpan, frames [][]byte) {
	for _, d := range order {
		for _, n := range numbers[d] {
			s := LayerSpan{Number: n}
			s.Layer = d
			spans = append(spans, s)
			frames = append(frames, bytes.Repeat([]byte{byte(len(frames))}, 100+len(frames)))
		}
	}
	return spans, frames
}

func withCopy(t testing.TB, spans []LayerSpan, frames [][]byte) Artifact {
	t.Helper()
	a, err := New(profileOf(3), made)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.AddCopy(trees, spans, frames); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestCopyRoundTrip(t *testing.T) {
	spans, frames := spansOf(map[digest.Digest][]int{layerA: {7, 8, 9, 3}, layerB: {0, 1}}, layerA,
		layerB)
	a := withCopy(t, spans, frames)
	m := a.Manifest(subject)
	// A registry keeps what a manifest names.
	if got := m.Layers; len(got) != 2 || got[1].Digest != digest.FromBytes(a.Copied) ||
		!bytes.Equal(a.Copied, bytes.Join(frames, nil)) {
		t.Errorf("the manifest names %v", got)
	}
	got, ok, err := CopyOf(ocispec.Descriptor{Annotations: m.Annotations})
	if err != nil || !ok || got.Trees != trees || !reflect.DeepEqual(got.Blob, a.Copy) ||
		len(got.Frames) != len(spans) {
		t.Fatalf("%+v, %v", got, err)
	}
	off := int64(0)
	for i, f := range got.Frames {
		want := Frame{spans[i].Layer, spans[i].Number,
			index.Range{Off: off, Size: int64(len(frames[i]))}}
		if f != want {
			t.Errorf("frame %d: %+v, want %+v", i, f, want)
		}
		off += want.Size
	}
	if _, ok, err := CopyOf(ocispec.Descriptor{}); ok || err != nil {
		t.Errorf("without the annotation: %t, %v", ok, err)
	}
	if got := withCopy(t, nil, nil).Manifest(subject); len(got.Layers) != 1 ||
		got.Annotations[annotationCopy] != "" {
		t.Errorf("without spans: %+v", got)
	}
}

// TestCopyRoom: as many of the first spans are copied as there is room for, in the copy and in what
// is said of it.
func TestCopyRoom(t *testing.T) {
	large := make([]byte, MaxCopy/2)
	spans, _ := spansOf(map[digest.Digest][]int{layerA: {1, 2, 3}}, layerA)
	a := withCopy(t, spans, [][]byte{large, large, {1}})
	if got, _, err := CopyOf(ocispec.Descriptor{Annotations: a.Manifest(subject).Annotations}); err != nil || len(got.Frames) != 2 || got.Blob.Size != MaxCopy {
		t.Errorf("large frames: %d of %d bytes, %v", len(got.Frames), got.Blob.Size, err)
	}
	for name, step := range map[string]int{"in a row": 1, "here and there": 2} {
		var numbers []int
		for i := range 2 * maxFrameBytes {
			numbers = append(numbers, i*step)
		}
		spans, frames := spansOf(map[digest.Digest][]int{layerA: numbers}, layerA)
		for i := range frames {
			frames[i] = []byte{1}
		}
		d := withCopy(t, spans, frames).Manifest(subject).Annotations
		got, ok, err := CopyOf(ocispec.Descriptor{Annotations: d})
		if err != nil || !ok || len(got.Frames) < 1000 || len(got.Frames) == len(spans) {
			t.Errorf("%s: %d frames in %d characters, %v", name, len(got.Frames),
				len(d[annotationCopy]), err)
		}
	}
	var order []digest.Digest
	numbers := map[digest.Digest][]int{}
	for i := range maxCopyLayers + 3 {
		d := digest.FromString(strings.Repeat("x", i))
		order, numbers[d] = append(order, d), []int{i}
	}
	many, frames := spansOf(numbers, order...)
	if got, _, err := CopyOf(ocispec.Descriptor{Annotations: withCopy(t, many,
		frames).Manifest(subject).Annotations}); err != nil || len(got.Frames) != maxCopyLayers {
		t.Errorf("many layers: %d frames, %v", len(got.Frames), err)
	}
}

// copyJSON returns an annotation.
func copyJSON(layers []digest.Digest, frames ...byte) string {
	b, _ := json.Marshal(copyText{Copy: layerA, Trees: trees, Layers: layers,
		Frames: base64.StdEncoding.EncodeToString(frames)})
	return string(b)
}

func TestCopyForeign(t *testing.T) {
	two := []digest.Digest{layerA, layerB}
	if _, err := parseCopy(copyJSON(two, 1, 5, 2, 10, 20)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no JSON":  "{",
		"too long": strings.Repeat(" ", maxCopyText) + "{}",
		"no copy": strings.Replace(copyJSON(two, 0, 0, 1, 1), layerA.String(), "sha256:1",
			1),
		"no trees":        strings.Replace(copyJSON(two, 0, 0, 1, 1), trees.String(), "", 1),
		"a layer twice":   copyJSON([]digest.Digest{layerA, layerA}, 0, 0, 1, 1, 1, 0, 1, 1),
		"no layer":        copyJSON([]digest.Digest{"x"}, 0, 0, 1, 1),
		"no layers":       copyJSON(nil, 0, 0, 1, 1),
		"too many layers": copyJSON(make([]digest.Digest, maxCopyLayers+1), 0, 0, 1, 1),
		"no base64":       strings.Replace(copyJSON(two, 0, 0, 1, 1), "AA", "!!", 1),
		"no frames":       copyJSON(two),
		"another layer":   copyJSON(two, 2, 0, 1, 1),
		"no spans":        copyJSON(two, 0, 0, 0),
		"far spans":       copyJSON(two, 0, 0x80, 0x80, 0x40, 1, 1),
		"many spans":      copyJSON(two, 0, 1, 0x80, 0x80, 0x40, 1),
		"cut sizes":       copyJSON(two, 0, 0, 2, 1),
		"no bytes":        copyJSON(two, 0, 0, 1, 0),
		"too many bytes":  copyJSON(two, 0, 0, 1, 0x81, 0x80, 0x80, 0x20),
		"too many in all": copyJSON(two, 0, 0, 2, 0x80, 0x80, 0x80, 0x20, 1),
		"a span twice":    copyJSON(two, 0, 3, 2, 9, 9, 0, 4, 1, 9),
		"a varint too big": copyJSON(two, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
			0xff, 0xff),
		"bytes behind it": copyJSON(two, 0, 0, 1, 1, 0),
	} {
		if got, err := parseCopy(text); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzCopyOf(f *testing.F) {
	spans, frames := spansOf(map[digest.Digest][]int{layerA: {7, 8, 3}, layerB: {0}}, layerA,
		layerB)
	f.Add(withCopy(f, spans, frames).copied)
	f.Add(copyJSON([]digest.Digest{layerA}, 0, 0, 1, 1))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCopy(text)
		if err != nil {
			return
		}
		var bytes int64
		for _, r := range c.Frames {
			if r.Layer.Validate() != nil || r.Span < 0 || r.Span >= index.MaxSpans || r.Size <= 0 ||
				r.Size > index.MaxSpanSize || r.Off != bytes {
				t.Errorf("accepted %+v", r)
			}
			bytes += r.Size
		}
		if bytes > MaxCopy || bytes != c.Blob.Size || c.Blob.Digest.Validate() != nil ||
			c.Trees.Validate() != nil {
			t.Errorf("%d bytes in %+v", bytes, c)
		}
		b, err := json.Marshal(c.text())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseCopy(string(b)); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("came back as %+v, %v", again, err)
		}
	})
}
