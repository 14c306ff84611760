package trust

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/targz"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/registry"
	"github.com/mica-snapshotter/mica/remote"
)

// layer is a layer whose image may claim another diffID than its own.
type layer struct {
	v1.Layer
	blob    []byte
	claimed v1.Hash
}

// DiffID implements v1.Layer.
func (l layer) DiffID() (v1.Hash, error) { return l.claimed, nil }

// layerOf compresses a tar.
func layerOf(t *testing.T, tar []byte) layer {
	t.Helper()
	blob, err := images.Gzip(tar)
	if err != nil {
		t.Fatal(err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil }
	l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	diffID, err := l.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return layer{l, blob, diffID}
}

// imageOf makes an image of layers, lowest first.
func imageOf(t *testing.T, layers ...layer) v1.Image {
	t.Helper()
	base, err := images.FromTars([]string{"/probe"})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if base, err = mutate.AppendLayers(base, l); err != nil {
			t.Fatal(err)
		}
	}
	return base
}

// who is a system of one file that says who made it, and others that tell layers apart.
func who(t *testing.T, probe []byte, name, seed string, etc int64) []byte {
	t.Helper()
	dir := images.Dir("etc")
	dir.Header.Mode = etc
	tar, err := images.Tar(images.File("probe", 0o755, probe), dir,
		images.File("etc/who", 0o644, []byte(name)),
		images.File("etc/other", 0o644, []byte("EVIL!!\n")),
		images.File("text", 0o644, text(seed, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	return tar
}

// text is n bytes that compress well and repeat what lies far behind.
func text(seed string, n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, "%s line %d of a text, %x\n", seed, i%977,
			sha256.Sum256(fmt.Append(nil, seed, i)))
	}
	return b[:n]
}

// scan returns the index of a layer, and its windows.
func scan(t *testing.T, l layer) (*index.Draft, []byte) {
	t.Helper()
	var windows bytes.Buffer
	o := targz.Options{Windows: &windows, SpanSize: 64 << 10}
	d, err := targz.Scan(t.Context(), bytes.NewReader(l.blob), o)
	if err != nil {
		t.Fatal(err)
	}
	return d, windows.Bytes()
}

// drafted is the index of one layer, as somebody wrote it.
type drafted struct {
	draft   *index.Draft
	windows []byte
	copied  []byte // the tar that a profile's copy has in the place of the layer's; nil: no profile
}

// push pushes an image and an index for it; no drafts: none.
func push(t *testing.T, r *registry.Registry, name string, img v1.Image, drafts ...drafted) (ref string) {
	t.Helper()
	ref = fixture.Push(t, r, name, img)
	if len(drafts) == 0 {
		return ref
	}
	var in []bundle.Input
	for _, d := range drafts {
		var file bytes.Buffer
		if _, err := index.Write(&file, d.draft); err != nil {
			t.Fatal(err)
		}
		in = append(in, bundle.Input{
			Index: bytes.NewReader(file.Bytes()), Size: int64(file.Len()),
			Windows: bytes.NewReader(d.windows),
		})
	}
	var trees, windows bytes.Buffer
	if err := bundle.Write(&trees, &windows, in); err != nil {
		t.Fatal(err)
	}
	client, err := remote.New(remote.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	im, err := client.Image(fixture.Direct(r, name))
	if err != nil {
		t.Fatal(err)
	}
	x := artifact.New(digest.FromBytes(trees.Bytes()), int64(trees.Len()),
		digest.FromBytes(windows.Bytes()), int64(windows.Len()))
	for d, b := range map[*ocispec.Descriptor][]byte{
		&x.Trees: trees.Bytes(), &x.Windows: windows.Bytes(), &ocispec.DescriptorEmptyJSON: []byte("{}"),
	} {
		if err := im.PushBlob(t.Context(), *d, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	manifest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	subject := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(manifest.String()), Size: int64(len(raw)),
	}
	if _, err := im.PushReferrer(t.Context(), subject,
		x.Manifest(subject, time.Now())); err != nil {
		t.Fatal(err)
	}
	for _, d := range drafts {
		if d.copied != nil {
			d.pushCopy(t, im, subject, x.Trees.Digest)
		}
	}
	return ref
}

// pushCopy pushes a profile that names all of the layer, with a copy of it.
func (d drafted) pushCopy(t *testing.T, im *remote.Image, subject ocispec.Descriptor, trees digest.Digest) {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var spans []published.LayerSpan
	var frames [][]byte
	for i, s := range d.draft.Spans {
		spans = append(spans, published.LayerSpan{
			Record: bundle.Record{Header: index.Header{Layer: d.draft.Layer}}, Number: i, Span: s,
		})
		frames = append(frames, z.EncodeAll(d.copied[s.Device:][:s.Size], nil))
	}
	a, err := published.New(&profile.Profile{
		Manifest: subject.Digest, Runs: 1,
		Ranges: []profile.Range{{Layer: d.draft.Layer, Size: d.draft.DeviceSize, Runs: 1}},
	}, time.Now())
	if err == nil {
		err = a.AddCopy(trees, spans, frames)
	}
	if err == nil {
		err = im.PushBlob(t.Context(), a.Blob, bytes.NewReader(a.Content))
	}
	if err == nil {
		err = im.PushBlob(t.Context(), a.Copy, bytes.NewReader(a.Copied))
	}
	if err == nil {
		_, err = im.PushReferrer(t.Context(), subject, a.Manifest(subject))
	}
	if err != nil {
		t.Fatal(err)
	}
}
