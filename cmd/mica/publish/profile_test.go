package publish

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote/layout"
)

// mica runs the command and returns what it prints.
func mica(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryMica(t, args...)
	if err != nil {
		t.Fatalf("mica %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func tryMica(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := &cobra.Command{Use: "mica", SilenceUsage: true, SilenceErrors: true}
	cmd.AddCommand(IndexCommand(), ProfileCommand())
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// testProfile is a profile of one run that reads ranges at the given blocks.
func testProfile(manifest digest.Digest, blocks ...int64) *profile.Profile {
	p := &profile.Profile{Manifest: manifest, Runs: 1}
	for i, b := range blocks {
		p.Ranges = append(p.Ranges, profile.Range{
			Layer: digest.FromString("layer"), Off: b * profile.BlockSize, Size: profile.BlockSize,
			At: time.Duration(i) * time.Second, Runs: 1,
		})
	}
	return p
}

func TestProfileFiles(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	m := digest.FromString("manifest")
	want := testProfile(m, 3, 1)
	for _, name := range []string{"a.json", "a.profile"} {
		path := filepath.Join(dir, name)
		if err := writeProfile(path, want); err != nil {
			t.Fatal(err)
		}
		mica(t, "profile", "import", "--root", root, "--replace", path)
		again := filepath.Join(dir, "again-"+name)
		mica(t, "profile", "export", "--root", root, "-o", again, m.String())
		got, err := readProfile(again)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s came back as %+v, %v", name, got, err)
		}
	}
	mica(t, "profile", "import", "--root", root, filepath.Join(dir, "a.json"))
	var list []admin.Profile
	if err := json.Unmarshal([]byte(mica(t, "profile", "ls", "--json", "--root", root)),
		&list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Manifest != m || list[0].Runs != 2 || list[0].Ranges != 2 ||
		list[0].Bytes != 2*profile.BlockSize || list[0].Layers != 1 {
		t.Errorf("ls: %+v", list)
	}
	if out := mica(t, "profile", "ls", "--root", root); !strings.Contains(out, m.String()) {
		t.Errorf("ls prints %q", out)
	}
	if out := mica(t, "profile", "show", "--root", root, m.String()); !strings.Contains(out,
		"2 ranges of 1 layers, 131.1 kB, from 2 runs") {
		t.Errorf("show prints %q", out)
	}
	mica(t, "profile", "rm", "--root", root, m.String())
	for _, verb := range []string{"rm", "show", "export"} {
		if _, err := tryMica(t, "profile", verb, "--root", root, m.String()); err == nil ||
			!strings.Contains(err.Error(), "no profile") {
			t.Errorf("%s of what is not there: %v", verb, err)
		}
	}
}

// layoutImage makes an OCI layout with an image of one layer, and returns the image's manifest.
func layoutImage(t *testing.T, dir string) ocispec.Descriptor {
	t.Helper()
	store := func(mediaType string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b),
			Size: int64(len(b))}
		name := filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded())
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	put := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return store(mediaType, b)
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 5}),
		second(w.Write([]byte("hello"))), w.Close()); err != nil {
		t.Fatal(err)
	}
	config := put(ocispec.MediaTypeImageConfig, ocispec.Image{})
	layer := store(ocispec.MediaTypeImageLayer, content.Bytes())
	m := put(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layer},
	})
	files := map[string]any{
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
		ocispec.ImageIndexFile: ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
			Manifests: []ocispec.Descriptor{m}},
	}
	for name, v := range files {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func second(_ int, err error) error { return err }

func TestProfilePush(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	m := layoutImage(t, dir)
	files := filepath.Join(t.TempDir(), "p.profile")
	push := func(p *profile.Profile, args ...string) {
		t.Helper()
		if err := writeProfile(files, p); err != nil {
			t.Fatal(err)
		}
		mica(t, append([]string{"profile", "push", dir, files}, args...)...)
	}
	fetch := func() *profile.Profile {
		t.Helper()
		l, err := layout.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		list, err := l.Image("").Referrers(t.Context(), m.Digest, published.ArtifactType)
		if err != nil {
			t.Fatal(err)
		}
		d, ok := published.Newest(list)
		if !ok {
			t.Fatalf("nothing is published: %v", list)
		}
		p, err := fetchProfile(t.Context(), l.Image(""), reach.Manifest{Desc: m}, d)
		if err != nil {
			t.Fatal(err)
		}
		d.Annotations = nil // as where a registry drops them
		whole, err := fetchProfile(t.Context(), l.Image(""), reach.Manifest{Desc: m}, d)
		if err != nil || !reflect.DeepEqual(whole, p) {
			t.Errorf("the blob holds %+v, %v; the annotation %+v", whole, err, p)
		}
		return p
	}
	push(testProfile(m.Digest, 1))
	if p := fetch(); p.Runs != 1 || len(p.Ranges) != 1 {
		t.Errorf("published %+v", p)
	}
	push(testProfile(m.Digest, 1, 5))
	if p := fetch(); p.Runs != 2 || len(p.Ranges) != 2 {
		t.Errorf("merged: %+v", p)
	}
	push(testProfile(m.Digest, 9), "--merge=false")
	if p := fetch(); p.Runs != 1 || len(p.Ranges) != 1 || p.Ranges[0].Off != 9*profile.BlockSize {
		t.Errorf("replaced: %+v", p)
	}
	mica(t, "profile", "import", "--root", root, files)
	mica(t, "profile", "push", "--root", root, dir)
	if p := fetch(); p.Runs != 2 || len(p.Ranges) != 1 {
		t.Errorf("from the node: %+v", p)
	}
	for name, p := range map[string]*profile.Profile{"another image": testProfile(digest.FromString("x"), 1), "empty": testProfile(m.Digest)} {
		if err := writeProfile(files, p); err != nil {
			t.Fatal(err)
		}
		if out, err := tryMica(t, "profile", "push", dir, files); err == nil {
			t.Errorf("%s was pushed: %s", name, out)
		}
	}
}

// TestIndexCreateProfile: index create publishes a profile too, which then says where its bytes
// lie.
func TestIndexCreateProfile(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "p.profile")
	m := layoutImage(t, dir)
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Image("").Manifest(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(b, &manifest); err != nil {
		t.Fatal(err)
	}
	p := testProfile(m.Digest, 0)
	p.Ranges[0].Layer = manifest.Layers[0].Digest
	for _, c := range []struct {
		manifest digest.Digest
		push, ok bool
	}{{m.Digest, false, false}, {digest.FromString("other"), true, false}, {m.Digest, true, true}} {
		p.Manifest = c.manifest
		if err := writeProfile(file, p); err != nil {
			t.Fatal(err)
		}
		args := []string{"index", "create", "--profile", file, dir}
		if c.push {
			args = append(args, "--push")
		}
		if out, err := tryMica(t, args...); (err == nil) != c.ok {
			t.Fatalf("of %s, pushed %v: %s, %v", c.manifest, c.push, out, err)
		}
	}
	list, err := l.Image("").Referrers(t.Context(), m.Digest, published.ArtifactType)
	if err != nil {
		t.Fatal(err)
	}
	d, ok := published.Newest(list)
	if !ok {
		t.Fatalf("nothing is published: %v", list)
	}
	c, ok, err := published.CopyOf(d)
	if err != nil || !ok || len(c.Frames) != 1 || c.Frames[0].Layer != p.Ranges[0].Layer ||
		c.Frames[0].Span != 0 {
		t.Fatalf("the copy is %+v, %v", c, err)
	}
	layer, err := l.Image("").FetchBlob(t.Context(), manifest.Layers[0], 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Image("").FetchBlob(t.Context(), c.Blob, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	s := index.Span{Size: int64(len(layer)), BlobSize: int64(len(got)), Codec: index.Zstd,
		Digest: sha256.Sum256(layer)}
	if err := s.Decode(make([]byte, len(layer)), got, nil); err != nil {
		t.Errorf("the copy is not of the layer: %v", err)
	}
}
