package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"

	"github.com/mica-snapshotter/mica/snapshotter"
)

// ns is the scope of the world's namespace.
func ns(known ...string) snapshotter.Scope {
	return snapshotter.Scope{Namespace: "ns", Known: known}
}

// world is containerd's metadata, behind its gRPC services.
type world struct {
	t      *testing.T
	ctx    context.Context // of namespace "ns"
	images images.Store
	db     *metadata.DB
	socket string
	events created
	// manifests do not name their config, as those that BuildKit pulls
	unnamed bool
	stop    func()
	client  *Client
}

// lister is containerd's image service, as far as it is asked.
type lister struct {
	imagesapi.UnimplementedImagesServer
	images images.Store
}

func (l lister) List(
	ctx context.Context, _ *imagesapi.ListImagesRequest,
) (*imagesapi.ListImagesResponse, error) {
	all, err := l.images.List(ctx)
	var r imagesapi.ListImagesResponse
	for _, i := range all {
		r.Images = append(r.Images, &imagesapi.Image{Name: i.Name, Target: &types.Descriptor{
			MediaType: i.Target.MediaType, Digest: i.Target.Digest.String(), Size: i.Target.Size}})
	}
	return &r, err
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	db := metadata.NewDB(file, blobs, nil)
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, ctx: namespaces.WithNamespace(t.Context(), "ns"),
		images: metadata.NewImageStore(db), db: db,
		socket: filepath.Join(dir, "s"), events: created{all: make(chan ocispec.Descriptor)},
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	if w.client, err = New([]string{filepath.Join(dir, "none"), w.socket},
		filepath.Join(dir, "certs.d"), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	return w
}

// start has the services answer at the socket, until stop.
func (w *world) start() {
	w.t.Helper()
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	contentapi.RegisterContentServer(server, contentserver.New(w.db.ContentStore()))
	imagesapi.RegisterImagesServer(server, lister{images: w.images})
	eventsapi.RegisterEventsServer(server, w.events)
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	go server.Serve(l) //nolint:errcheck // it ends with Stop
	w.stop = server.Stop
}

// put writes a document, with labels, and returns its descriptor.
func (w *world) put(mediaType string, v any, labels map[string]string) ocispec.Descriptor {
	w.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(w.ctx, w.db.ContentStore(), d.Digest.String(), bytes.NewReader(b),
		d, content.WithLabels(labels)); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// manifest writes an image that claims diffIDs, and was pulled from the sources: host,
// repositories.
func (w *world) manifest(blobs, diffIDs []string, sources map[string]string) ocispec.Descriptor {
	w.t.Helper()
	var config ocispec.Image
	config.RootFS.Type = "layers"
	for _, d := range diffIDs {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString(d))
	}
	c := w.put(ocispec.MediaTypeImageConfig, config, nil)
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: c}
	for _, b := range blobs {
		m.Layers = append(m.Layers,
			ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip,
				Digest: digest.FromString(b), Size: 1})
	}
	labels := map[string]string{}
	if !w.unnamed {
		labels[configLabel] = c.Digest.String()
	}
	for host, repositories := range sources {
		labels[sourceLabel+host] = repositories
	}
	return w.put(ocispec.MediaTypeImageManifest, m, labels)
}

func (w *world) name(name string, target ocispec.Descriptor) {
	w.t.Helper()
	if _, err := w.images.Create(w.ctx, images.Image{Name: name, Target: target}); err != nil {
		w.t.Fatal(err)
	}
}

// TestWith: images that have a chain, by whichever way, and where they come from.
func TestWith(t *testing.T) {
	w := newWorld(t)
	chain := digest.FromString("x")
	a := w.manifest([]string{"E"}, []string{"x"}, map[string]string{"localhost": "evil/a"})
	b := w.manifest([]string{"V"}, []string{"x"},
		map[string]string{"localhost": "victim/b,mirror/b", "docker.io": "library/b"})
	longer := w.manifest([]string{"V", "W"}, []string{"x", "y"},
		map[string]string{"localhost": "long/c"})
	odd := w.manifest([]string{"V", "W"}, []string{"x"}, map[string]string{"localhost": "evil/a"})
	loaded := w.manifest([]string{"L"}, []string{"x"}, nil)
	gone := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest,
		Digest: digest.FromString("another platform"), Size: 3}
	list := w.put(ocispec.MediaTypeImageIndex,
		ocispec.Index{Manifests: []ocispec.Descriptor{gone, b}}, nil)
	nested := w.put(ocispec.MediaTypeImageIndex,
		ocispec.Index{Manifests: []ocispec.Descriptor{list}}, nil)
	w.name("localhost:5000/evil/a:1", a)
	w.name("localhost:5000/victim/b:1", nested)
	w.name("localhost:5001/mirror/b@"+b.Digest.String(), nested)
	w.name("docker.io/library/b:latest", list)
	w.name("localhost:5000/long/c:1", longer)
	w.name("sha256:0123", loaded)
	w.name("localhost:5000/odd/d:1", odd)
	w.name("localhost:5000/lost/e:1", gone)

	found, err := w.client.With(t.Context(), ns(), chain)
	if err != nil {
		t.Fatal(err)
	}
	got := map[digest.Digest][]string{}
	for _, i := range found {
		slices.Sort(i.Refs)
		got[i.Manifest] = i.Refs
		if i.Manifest == odd.Digest && i.Layers != nil {
			t.Error("which blob of the odd image makes the layer is known")
		}
	}
	want := map[digest.Digest][]string{
		a.Digest: {"localhost:5000/evil/a"},
		b.Digest: {"docker.io/library/b", "localhost:5000/victim/b",
			"localhost:5001/mirror/b"},
		odd.Digest:    {"localhost:5000/evil/a"},
		loaded.Digest: nil,
	}
	if len(got) != len(want) {
		t.Errorf("found %v", got)
	}
	for d, refs := range want {
		if r, ok := got[d]; !ok || !slices.Equal(r, refs) {
			t.Errorf("image %s: %v, %v, want %v", d, r, ok, refs)
		}
	}

	// A child that comes later is found, although its image has not changed.
	other := w.manifest([]string{"O"}, []string{"z"}, map[string]string{"localhost": "evil/a"})
	w.name("localhost:5000/late:1",
		w.put(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{other}},
			nil))
	if found, err = w.client.With(t.Context(), ns(), digest.FromString("z")); err != nil ||
		len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
	// In another namespace there are none.
	elsewhere := snapshotter.Scope{Namespace: "elsewhere"}
	if found, err = w.client.With(t.Context(), elsewhere, chain); err != nil || len(found) != 0 {
		t.Errorf("found %v, %v", found, err)
	}
}

// TestSourceUnknown: a repository whose port nobody knows, or of which containerd may have had no
// room to tell.
func TestSourceUnknown(t *testing.T) {
	w := newWorld(t)
	chain := digest.FromString("x")
	m := w.manifest([]string{"E"}, []string{"x"}, map[string]string{"localhost": "a,b"})
	w.name("localhost:5000/a:1", m)
	refs := func(known ...string) []string {
		t.Helper()
		found, err := w.client.With(t.Context(), ns(known...), chain)
		if err != nil || len(found) != 1 {
			t.Fatalf("found %v, %v", found, err)
		}
		return found[0].Refs
	}
	if r := refs(); r != nil {
		t.Errorf("from %v, want not known", r)
	}
	if r := refs("localhost:5000/b:2"); len(r) != 2 {
		t.Errorf("from %v, want both", r)
	}
	long := "a," + string(bytes.Repeat([]byte("r"), fullLabel))
	info := content.Info{Digest: m.Digest,
		Labels: map[string]string{sourceLabel + "localhost": long}}
	if _, err := w.db.ContentStore().Update(w.ctx, info,
		"labels."+sourceLabel+"localhost"); err != nil {
		t.Fatal(err)
	}
	if r := refs("localhost:5000/" + long[2:]); r != nil {
		t.Errorf("from %v, want not known", r)
	}
}

// TestNamed: the image that is being pulled has no name yet.
func TestNamed(t *testing.T) {
	w := newWorld(t)
	m := w.manifest([]string{"A", "B"}, []string{"a", "b"}, nil)
	i, err := w.client.Named(t.Context(), "ns", "localhost:5000/a:1", m.Digest)
	if err != nil || len(i.Chains) != 2 || i.Layers[1] != digest.FromString("B") ||
		i.Refs[0] != "localhost:5000/a:1" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := w.client.Named(t.Context(), "ns", "localhost:5000/a:1",
		digest.FromString("none")); err == nil {
		t.Error("a manifest that containerd has not")
	}
}

// TestClaiming: images that are being pulled have no name yet. Their manifest tells where from, and
// names, folders and the host's kind tell the registry's port.
func TestClaiming(t *testing.T) {
	w := newWorld(t)
	claiming := func(chain digest.Digest) (refs [][]string, errs int) {
		t.Helper()
		for i, err := range w.client.Claiming(t.Context(), ns(), chain) {
			if err != nil {
				errs++
			} else {
				slices.Sort(i.Refs)
				refs = append(refs, i.Refs)
			}
		}
		return refs, errs
	}
	base := digest.FromString("base")
	if refs, errs := claiming(base); len(refs) != 0 || errs != 0 {
		t.Errorf("%v, %d errors where there are no images", refs, errs)
	}
	folder := filepath.Join(w.client.configPath, "folder:5000")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	w.name("named:5001/other:1", w.manifest([]string{"O"}, []string{"other"}, nil))
	for _, sources := range []map[string]string{
		{"docker.io": "library/a,library/b"}, {"named": "c"}, {"folder": "d"},
		{"reg.example.com": "e"},
		{"10.0.0.1": "f"}, {"localhost": "g"}, nil, {"localhost": "h", "quay.io": "h"},
	} {
		w.manifest([]string{"B", fmt.Sprint(sources)}, []string{"base", fmt.Sprint(sources)},
			sources)
	}
	refs, errs := claiming(base)
	want := [][]string{ // the latest first
		{"quay.io/h"}, {"reg.example.com/e"}, {"folder:5000/d"}, {"named:5001/c"},
		{"docker.io/library/a", "docker.io/library/b"},
	}
	if !reflect.DeepEqual(refs, want) || errs != 3 {
		t.Errorf("%v, %d errors; want %v, 3", refs, errs, want)
	}
	// and the caller may have enough
	for i, err := range w.client.Claiming(t.Context(), ns(), base) {
		if err != nil || i.Layers[0] != digest.FromString("B") || i.Chains[0] != base {
			t.Errorf("%+v, %v", i, err)
		}
		break
	}
	if refs, errs := claiming(digest.FromString("none")); len(refs) != 0 || errs != 0 {
		t.Errorf("%v, %d errors of a chain that no image has", refs, errs)
	}
	w.stop()
	if refs, errs := claiming(base); len(refs) != 0 || errs != 1 {
		t.Errorf("%v, %d errors where containerd is away", refs, errs)
	}
	w.start()
}

// TestUnnamed: what BuildKit pulls is no image. It counts for BuildKit alone.
func TestUnnamed(t *testing.T) {
	w := newWorld(t)
	w.unnamed = true
	at := map[string]string{"localhost": "base"}
	chain := digest.FromString("x")
	list := w.put(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{
		w.manifest([]string{"B"}, []string{"x"}, at),
	}}, map[string]string{sourceLabel + "localhost": "base"})
	w.put(ocispec.MediaTypeImageLayerGzip, "a layer that is not here",
		map[string]string{sourceLabel + "localhost": "base", layerLabel: "true"})
	known := "localhost:5000/base:1"
	count := func(in snapshotter.Scope) (with, claiming int) {
		t.Helper()
		found, err := w.client.With(t.Context(), in, chain)
		if err != nil {
			t.Fatal(err)
		}
		for i, err := range w.client.Claiming(t.Context(), in, chain) {
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, i)
			claiming++
		}
		for _, i := range found {
			if !slices.Equal(i.Refs, []string{"localhost:5000/base"}) {
				t.Errorf("an image of %v", i.Refs)
			}
		}
		return len(found) - claiming, claiming
	}
	if with, claiming := count(ns(known)); with != 0 || claiming != 0 {
		t.Errorf("%d and %d images without a name", with, claiming)
	}
	built := ns(known)
	built.Unnamed = true
	if with, claiming := count(built); with != 1 || claiming != 1 {
		t.Errorf("%d and %d images for BuildKit", with, claiming)
	}
	if len(w.client.kept) != 2 {
		t.Errorf("read: %v; want the index and the manifest", w.client.kept)
	}
	w.name("localhost:5000/base:1", list) // which has been taken for a manifest before
	if with, _ := count(ns()); with != 1 {
		t.Errorf("%d images of an index", with)
	}
}

// TestRestarted: containerd answers again after it was away, and what asks while it is away gets an
// error.
func TestRestarted(t *testing.T) {
	w := newWorld(t)
	with := func() error {
		_, err := w.client.With(t.Context(), ns(), someDigest)
		return err
	}
	for range 2 {
		if err := with(); err != nil {
			t.Fatal(err)
		}
		w.stop()
		if err := with(); err == nil {
			t.Fatal("it answers, and is not there")
		}
		w.start()
	}
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"config":{"digest":"`+digest.FromString("c")+`"},"layers":[{"mediaType":"`+ocispec.MediaTypeImageLayerGzip+`","digest":"sha256:0"}]}`),
		[]byte(`{"rootfs":{"diff_ids":["sha256:0"]}}`))
	f.Add([]byte(`{"manifests":[{}]}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		d, layers := parseManifest(manifest)
		if d != "" && d.Validate() != nil {
			t.Errorf("config %q", d)
		}
		for _, l := range layers {
			if err := l.Digest.Validate(); err != nil {
				t.Error(err)
			}
		}
		if doc := parseConfig(config, layers); doc.layers != nil &&
			len(doc.layers) != len(doc.chains) {
			t.Errorf("%d layers, %d chains", len(doc.layers), len(doc.chains))
		}
		parseIndex(manifest)
	})
}
