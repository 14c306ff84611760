package published

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index/artifact"
)

var (
	subject = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest,
		Digest: digest.FromString("image"), Size: 5}
	made = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// profileOf returns a profile of n ranges that do not compress well.
func profileOf(n int) *profile.Profile {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	p := &profile.Profile{Manifest: subject.Digest, Runs: 1}
	var off int64
	for range n {
		off += rng.Int64N(1<<30) + 1
		size := rng.Int64N(1<<20) + 1
		p.Ranges = append(p.Ranges,
			profile.Range{Layer: digest.FromString("layer"), Off: off, Size: size, Runs: 1})
		off += size
	}
	return p
}

func TestRoundTrip(t *testing.T) {
	for name, c := range map[string]struct {
		ranges int
		inline bool
	}{
		"small": {3, true},
		"large": {20000, false},
	} {
		t.Run(name, func(t *testing.T) {
			want := profileOf(c.ranges)
			a, err := New(want, made)
			if err != nil {
				t.Fatal(err)
			}
			m := a.Manifest(subject)
			if m.Subject.Digest != subject.Digest || m.ArtifactType != ArtifactType {
				t.Errorf("manifest of type %s for %v", m.ArtifactType, m.Subject)
			}
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			blob, err := artifact.Blob(b, profile.MediaType, MaxBlob)
			if err != nil || blob.Digest != digest.FromBytes(a.Content) ||
				blob.Size != int64(len(a.Content)) {
				t.Errorf("Blob: %v, %v", blob, err)
			}
			content, ok, err := FromReferrer(ocispec.Descriptor{Annotations: m.Annotations})
			if err != nil || ok != c.inline {
				t.Fatalf("FromReferrer: ok %v, %v; want %v for %d bytes", ok, err, c.inline,
					len(a.Content))
			}
			if !ok {
				content = a.Content
			}
			got, err := profile.Decode(content, profile.Limits{})
			if err != nil || len(got.Ranges) != c.ranges || got.Manifest != want.Manifest {
				t.Errorf("profile came back as %v, %v", got, err)
			}
		})
	}
}

func TestNewest(t *testing.T) {
	entry := func(name, created string) ocispec.Descriptor {
		return ocispec.Descriptor{
			ArtifactType: ArtifactType, Digest: digest.FromString(name),
			Annotations: map[string]string{ocispec.AnnotationCreated: created},
		}
	}
	foreign := entry("foreign", "2030-01-01T00:00:00Z")
	foreign.ArtifactType = "application/vnd.mica.index.v1"
	a, b := entry("a", "2026-03-01T12:00:00Z"), entry("b", "2026-03-01T12:00:00.5Z")
	none := ocispec.Descriptor{ArtifactType: ArtifactType, Digest: digest.FromString("none")}
	for name, c := range map[string]struct {
		in   []ocispec.Descriptor
		want digest.Digest
	}{
		"nothing":         {nil, ""},
		"foreign":         {[]ocispec.Descriptor{foreign}, ""},
		"by time":         {[]ocispec.Descriptor{a, foreign, b, none}, b.Digest},
		"in other order":  {[]ocispec.Descriptor{none, b, a}, b.Digest},
		"without a time":  {[]ocispec.Descriptor{none}, none.Digest},
		"time of nothing": {[]ocispec.Descriptor{entry("x", "soon"), a}, a.Digest},
	} {
		got, ok := Newest(c.in)
		if got.Digest != c.want || ok != (c.want != "") {
			t.Errorf("%s: %v, %v; want %v", name, got.Digest, ok, c.want)
		}
	}
}

func TestForeign(t *testing.T) {
	long := make([]byte, 128<<10)
	for i := range long {
		long[i] = 'A'
	}
	for name, text := range map[string]string{"no base64": "%%%", "too long": string(long)} {
		d := ocispec.Descriptor{Annotations: map[string]string{annotationContent: text}}
		if _, ok, err := FromReferrer(d); !ok || err == nil {
			t.Errorf("%s: ok %v, err %v", name, ok, err)
		}
	}
	for name, layer := range map[string]ocispec.Descriptor{
		"other type": {MediaType: "application/octet-stream", Digest: subject.Digest, Size: 1},
		"no digest":  {MediaType: profile.MediaType, Digest: "sha256:12", Size: 1},
		"too large":  {MediaType: profile.MediaType, Digest: subject.Digest, Size: MaxBlob + 1},
		"negative":   {MediaType: profile.MediaType, Digest: subject.Digest, Size: -1},
	} {
		b, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{layer}})
		if err != nil {
			t.Fatal(err)
		}
		if d, err := artifact.Blob(b, profile.MediaType, MaxBlob); err == nil {
			t.Errorf("%s: accepted as %v", name, d)
		}
	}
}

func FuzzFromReferrer(f *testing.F) {
	a, err := New(profileOf(3), made)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Manifest(subject).Annotations[annotationContent])
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		content, ok, err := FromReferrer(ocispec.Descriptor{Annotations: map[string]string{annotationContent: text}})
		if !ok || err == nil && len(content) > MaxInline {
			t.Errorf("%d bytes, ok %v", len(content), ok)
		}
	})
}

func FuzzBlob(f *testing.F) {
	a, err := New(profileOf(3), made)
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(a.Manifest(subject))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := artifact.Blob(b, profile.MediaType, MaxBlob)
		if err == nil && (d.Digest.Validate() != nil || d.Size < 0 || d.Size > MaxBlob) {
			t.Errorf("accepted %v", d)
		}
	})
}
