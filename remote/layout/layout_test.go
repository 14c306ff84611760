package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mica-snapshotter/mica/remote"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// source is what an image in a registry and one in a layout have in common.
type source interface {
	Ref() string
	Resolve(context.Context) (ocispec.Descriptor, error)
	Manifest(context.Context, ocispec.Descriptor) ([]byte, error)
	FetchBlob(context.Context, ocispec.Descriptor, int64) ([]byte, error)
	Open(context.Context, ocispec.Descriptor) (io.ReadCloser, error)
	Referrers(context.Context, digest.Digest, ...string) ([]ocispec.Descriptor, error)
	PushBlob(context.Context, ocispec.Descriptor, io.ReadSeeker) error
	PushReferrer(
		context.Context, ocispec.Descriptor, ocispec.Manifest, ...ocispec.Descriptor,
	) (ocispec.Descriptor, error)
}

var (
	_ source = (*Image)(nil)
	_ source = (*remote.Image)(nil)
)

func create(t *testing.T) *Layout {
	t.Helper()
	l, err := Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func push(t *testing.T, i *Image, b []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b),
		Size: int64(len(b))}
	if err := i.PushBlob(t.Context(), d, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return d
}

func manifest(config ocispec.Descriptor) []byte {
	b, _ := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: config})
	return b
}

// enter stores a manifest and enters it into index.json, under a name.
func enter(t *testing.T, i *Image, content []byte, name string) ocispec.Descriptor {
	t.Helper()
	d := push(t, i, content)
	d.MediaType = ocispec.MediaTypeImageManifest
	named := d
	named.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	if err := i.layout.enter(named); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRoundTrip(t *testing.T) {
	l := create(t)
	i := l.Image("")
	blob := bytes.Repeat([]byte("0123456789"), 1000)
	d := push(t, i, blob)
	want := enter(t, i, manifest(d), "v1")
	index, err := i.PushReferrer(t.Context(), want,
		ocispec.Manifest{ArtifactType: "type/a", Config: d,
			Annotations: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	if l, err = Open(l.dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "v1", want.Digest.String()} {
		got, err := l.Image(name).Resolve(t.Context())
		if err != nil || got.Digest != want.Digest || got.Size != want.Size {
			t.Errorf("%q is %v, %v", name, got, err)
		}
	}
	if _, err := l.Image("v2").Resolve(t.Context()); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("v2: %v", err)
	}
	if b, err := i.Manifest(t.Context(), want); err != nil || !bytes.Equal(b, manifest(d)) {
		t.Errorf("manifest: %v", err)
	}
	found, err := i.Referrers(t.Context(), want.Digest, "type/a")
	if err != nil || len(found) != 1 || found[0].Digest != index.Digest ||
		found[0].Annotations["k"] != "v" {
		t.Errorf("referrers: %+v, %v", found, err)
	}
	if found, err := i.Referrers(t.Context(), want.Digest, "type/b"); err != nil ||
		len(found) != 0 {
		t.Errorf("referrers of another type: %+v, %v", found, err)
	}
	p := make([]byte, 25)
	if err := i.Blob(d).ReadAt(t.Context(), p, 9975); err != nil || !bytes.Equal(p, blob[9975:]) {
		t.Errorf("%q, %v", p, err)
	}
	r, err := i.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	left, _ := filepath.Glob(filepath.Join(l.dir, "blobs", "sha256", atomicfile.Leftovers))
	if len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestRefuses(t *testing.T) {
	l := create(t)
	i := l.Image("")
	d := push(t, i, []byte("right"))
	path, _ := blobPath(l.dir, d.Digest)
	overwrite := func(with string) func() error {
		return func() error { return os.WriteFile(path, []byte(with), 0o644) }
	}
	for _, tc := range []struct {
		name   string
		damage func() error
	}{
		{"changed", overwrite("wrong")},
		{"short", overwrite("righ")},
		{"long", overwrite("right, and more")},
		{"gone", func() error { return os.Remove(path) }},
	} {
		if err := tc.damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := i.FetchBlob(t.Context(), d, 10); err == nil {
			t.Errorf("%s: no error", tc.name)
		}
		if err := i.Blob(d).ReadAt(t.Context(), make([]byte, 5), 0); err == nil &&
			(tc.name == "short" || tc.name == "gone") {
			t.Errorf("%s: no error of ReadAt", tc.name)
		}
	}
	for name, d := range map[string]ocispec.Descriptor{
		"other digest": {Digest: digest.FromString("x"), Size: 5},
		"shorter":      {Digest: digest.FromString("right"), Size: 4},
		"longer":       {Digest: digest.FromString("right"), Size: 6},
		"path":         {Digest: "sha256:../../x", Size: 5},
	} {
		if err := i.PushBlob(t.Context(), d, strings.NewReader("right")); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("an empty directory is no layout")
	}
	if _, err := Create(filepath.Dir(path)); err != nil {
		t.Errorf("create in an empty directory: %v", err)
	}
	if _, err := Create(filepath.Dir(l.dir)); err == nil {
		t.Error("a layout was made among other things")
	}
}

// TestTogether pushes from many at once: each entry is there in the end.
func TestTogether(t *testing.T) {
	l := create(t)
	var wg sync.WaitGroup
	for k := range 20 {
		wg.Go(func() {
			i := l.Image("")
			m := ocispec.Manifest{Config: ocispec.DescriptorEmptyJSON,
				Annotations: map[string]string{"n": fmt.Sprint(k)}}
			if _, err := i.PushReferrer(t.Context(), ocispec.DescriptorEmptyJSON, m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	index, err := l.index()
	if err != nil || len(index.Manifests) != 20 {
		t.Fatalf("%d entries, %v", len(index.Manifests), err)
	}
}
