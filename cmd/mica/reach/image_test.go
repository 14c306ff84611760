package reach

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote/layout"
)

// layoutDir is an OCI layout in the making.
type layoutDir struct {
	t   *testing.T
	dir string
}

func (l layoutDir) put(mediaType string, v any) ocispec.Descriptor {
	l.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	l.write(filepath.Join("blobs/sha256", d.Digest.Encoded()), b)
	return d
}

func (l layoutDir) write(name string, b []byte) {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// manifest makes an image for a platform, of which it says nothing in the descriptor.
func (l layoutDir) manifest(arch string) ocispec.Descriptor {
	config := l.put(ocispec.MediaTypeImageConfig,
		ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}})
	return l.put(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config,
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip,
			Digest: digest.FromString(arch), Size: 1}},
	})
}

func (l layoutDir) index(manifests ...ocispec.Descriptor) ocispec.Descriptor {
	return l.put(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: manifests,
	})
}

// image is the layout with this one image.
func (l layoutDir) image(d ocispec.Descriptor) Image {
	l.t.Helper()
	l.write(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.write(ocispec.ImageIndexFile, b)
	open, err := layout.Open(l.dir)
	if err != nil {
		l.t.Fatal(err)
	}
	return open.Image("")
}

// TestChoose: of an index the manifest that containerd takes.
func TestChoose(t *testing.T) {
	l := layoutDir{t, t.TempDir()}
	amd64, arm64 := l.manifest("amd64"), l.manifest("arm64")
	as := func(d ocispec.Descriptor, os, arch string) ocispec.Descriptor {
		d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
		return d
	}
	for name, c := range map[string]struct {
		index ocispec.Descriptor
		want  ocispec.Descriptor // the zero value: none
	}{
		"platforms": {l.index(as(arm64, "linux", "arm64"), as(amd64, "linux",
			"amd64")), amd64},
		"without a platform":          {l.index(amd64), amd64},
		"without a platform, another": {l.index(arm64), ocispec.Descriptor{}},
		"only the first without one":  {l.index(arm64, amd64), ocispec.Descriptor{}},
		"one with a platform wins":    {l.index(arm64, as(amd64, "linux", "amd64")), amd64},
		"an attestation beside it":    {l.index(as(arm64, "unknown", "unknown"), amd64), amd64},
		"nested":                      {l.index(l.index(as(amd64, "linux", "amd64"))), amd64},
		"nested twice, no platform":   {l.index(l.index(l.index(amd64))), amd64},
		"nested, with a platform itself": {l.index(as(l.index(arm64), "linux", "arm64"),
			as(l.index(amd64), "linux", "amd64")), amd64},
		"empty": {l.index(), ocispec.Descriptor{}},
	} {
		list, err := Manifests(t.Context(), l.image(c.index), []string{"linux/amd64"})
		switch {
		case c.want.Digest == "":
			if err == nil ||
				!strings.Contains(err.Error(), "no manifest for platform linux/amd64") {
				t.Errorf("%s: %v, %v", name, list, err)
			}
		case err != nil || len(list) != 1 || list[0].Desc.Digest != c.want.Digest:
			t.Errorf("%s: %v, %v, want %s", name, list, err, c.want.Digest)
		}
	}
}
