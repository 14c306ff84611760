package artifact

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestManifestRoundTrip(t *testing.T) {
	want := New(digest.FromString("trees"), 5, digest.FromString("windows"), 7)
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("image"), Size: 5}
	m := want.Manifest(subject)
	if m.Subject.Digest != subject.Digest || m.ArtifactType != Type {
		t.Errorf("manifest of type %s for %v, want %s for %v", m.ArtifactType, m.Subject, Type, subject)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{Annotations: m.Annotations}
	got, err := Parse(b)
	if err != nil || got.Trees.Digest != want.Trees.Digest || got.Windows.Size != want.Windows.Size {
		t.Errorf("Parse: %v, %v; want %v", got, err, want)
	}
	got, ok, err := FromReferrer(d)
	if err != nil || !ok || got.Trees.Digest != want.Trees.Digest || got.Windows.Digest != want.Windows.Digest || got.Trees.Size != 5 {
		t.Errorf("FromReferrer: %v, %v, %v; want %v", got, ok, err, want)
	}
}

func TestForeignReferrers(t *testing.T) {
	d := ocispec.Descriptor{Annotations: New(digest.FromString("t"), 1, digest.FromString("w"), 1).Manifest(ocispec.Descriptor{}).Annotations}
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

func FuzzParse(f *testing.F) {
	b, err := json.Marshal(New(digest.FromString("t"), 1, digest.FromString("w"), 1).Manifest(ocispec.Descriptor{Digest: digest.FromString("s")}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(strings.Replace(string(b), "sha256", "sha512", 1)))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := Parse(b)
		if err == nil && (x.Trees.Digest.Validate() != nil || x.Trees.Size < 0 || x.Windows.Size < 0) {
			t.Errorf("accepted %v", x)
		}
	})
}
