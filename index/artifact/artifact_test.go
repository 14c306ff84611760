package artifact

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestManifestRoundTrip(t *testing.T) {
	want := New(digest.FromString("trees"), 5, digest.FromString("windows"), 7)
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest,
		Digest: digest.FromString("image"), Size: 5}
	m := want.Manifest(subject, time.Unix(5, 0))
	if m.Subject.Digest != subject.Digest || m.ArtifactType != Type {
		t.Errorf("manifest of type %s for %v, want %s for %v", m.ArtifactType, m.Subject, Type,
			subject)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{Annotations: m.Annotations}
	got, err := Parse(b)
	if err != nil || got.Trees.Digest != want.Trees.Digest ||
		got.Windows.Size != want.Windows.Size {
		t.Errorf("Parse: %v, %v; want %v", got, err, want)
	}
	got, ok, err := FromReferrer(d)
	if err != nil || !ok || got.Trees.Digest != want.Trees.Digest ||
		got.Windows.Digest != want.Windows.Digest || got.Trees.Size != 5 {
		t.Errorf("FromReferrer: %v, %v, %v; want %v", got, ok, err, want)
	}
}

func TestOf(t *testing.T) {
	entry := func(name, kind, created string) ocispec.Descriptor {
		return ocispec.Descriptor{Digest: digest.FromString(name), ArtifactType: kind,
			Annotations: map[string]string{ocispec.AnnotationCreated: created}}
	}
	old, last := entry("old", Type, "2026-01-02T00:00:00Z"), entry("last", Type,
		"2026-01-02T00:00:00.5Z")
	undated, other := entry("undated", Type, "yesterday"), entry("other", "text/plain",
		"2027-01-01T00:00:00Z")
	got := Of(Type, []ocispec.Descriptor{undated, old, other, last})
	if len(got) != 3 || got[0].Digest != last.Digest || got[1].Digest != old.Digest ||
		got[2].Digest != undated.Digest {
		t.Errorf("got %v, want the last, the old, the undated", got)
	}
}

func TestForeignReferrers(t *testing.T) {
	d := ocispec.Descriptor{Annotations: New(digest.FromString("t"), 1, digest.FromString("w"),
		1).Manifest(ocispec.Descriptor{}, time.Time{}).Annotations}
	with := func(key, value string) ocispec.Descriptor {
		c := d
		c.Annotations = map[string]string{}
		for k, v := range d.Annotations {
			c.Annotations[k] = v
		}
		c.Annotations[key] = value
		return c
	}
	for name, in := range map[string]ocispec.Descriptor{
		"no digest":     with(annotationTreesDigest, "sha256:12"),
		"negative size": with(annotationTreesSize, "-1"),
		"huge size":     with(annotationWindowsSize, "9223372036854775807"),
		"no number":     with(annotationWindowsSize, "many"),
	} {
		if _, _, err := FromReferrer(in); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, ok, err := FromReferrer(ocispec.Descriptor{}); ok || err != nil {
		t.Errorf("entry without annotations: ok %v, err %v", ok, err)
	}
}

func TestLayers(t *testing.T) {
	want := []Layer{{digest.FromString("a"), digest.FromString("tar a"), 512, 1},
		{digest.FromString("b"), digest.FromString("tar b"), 1 << 40, 1 << 20}}
	x := New(digest.FromString("t"), 1, digest.FromString("w"), 1)
	x.Layers = want
	got, err := Layers(ocispec.Descriptor{Annotations: x.Manifest(ocispec.Descriptor{},
		time.Time{}).Annotations})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Layers: %v, %v; want %v", got, err, want)
	}
	if got, err := Layers(ocispec.Descriptor{}); err != nil || got != nil {
		t.Errorf("without the annotation: %v, %v", got, err)
	}
	good, _ := json.Marshal(want[0])
	for name, in := range map[string]string{
		"no JSON":         "layers",
		"no list":         string(good),
		"no digest":       strings.Replace("["+string(good)+"]", "sha256:", "", 1),
		"negative size":   strings.Replace("["+string(good)+"]", "512", "-512", 1),
		"huge size":       strings.Replace("["+string(good)+"]", "512", "9223372036854775807", 1),
		"too many layers": "[" + strings.Repeat(string(good)+",", MaxLayers) + string(good) + "]",
	} {
		if got, err := Layers(ocispec.Descriptor{Annotations: map[string]string{annotationLayers: in}}); err == nil {
			t.Errorf("%s: accepted, %v", name, got)
		}
	}
}

func FuzzLayers(f *testing.F) {
	b, err := json.Marshal([]Layer{{digest.FromString("a"), digest.FromString("tar a"), 512, 1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	f.Add("[]")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := Layers(ocispec.Descriptor{Annotations: map[string]string{annotationLayers: text}})
		for _, l := range list {
			if err != nil || l.Digest.Validate() != nil || l.DiffID.Validate() != nil ||
				l.Size < 0 || l.Inodes < 0 {
				t.Errorf("accepted %+v, %v", l, err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	b, err := json.Marshal(New(digest.FromString("t"), 1, digest.FromString("w"),
		1).Manifest(ocispec.Descriptor{Digest: digest.FromString("s")}, time.Time{}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(strings.Replace(string(b), "sha256", "sha512", 1)))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := Parse(b)
		if err == nil && (x.Trees.Digest.Validate() != nil || x.Trees.Size < 0 ||
			x.Windows.Size < 0) {
			t.Errorf("accepted %v", x)
		}
	})
}
