package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mica-snapshotter/mica/snapshotter"
)

var someDigest = digest.FromString("some")

func TestManifestOf(t *testing.T) {
	for name, c := range map[string]struct {
		topic string
		event *events.ContentCreate
		want  bool
	}{
		"a manifest": {topic,
			&events.ContentCreate{Digest: someDigest.String(), Size: 700,
				MediaType: ocispec.MediaTypeImageManifest}, true},
		"of an older containerd": {topic,
			&events.ContentCreate{Digest: someDigest.String(), Size: 700}, true},
		"an index": {topic,
			&events.ContentCreate{Digest: someDigest.String(), Size: 700,
				MediaType: ocispec.MediaTypeImageIndex}, false},
		"a layer": {topic,
			&events.ContentCreate{Digest: someDigest.String(), Size: 7 << 20}, false},
		"another topic": {"/content/delete",
			&events.ContentCreate{Digest: someDigest.String()}, false},
		"no digest": {topic, &events.ContentCreate{Digest: "sha256:../.."}, false},
	} {
		b, err := proto.Marshal(c.event)
		if err != nil {
			t.Fatal(err)
		}
		d, ok := manifestOf(&types.Envelope{Topic: c.topic, Event: &anypb.Any{Value: b}})
		if ok != c.want || ok && d != someDigest {
			t.Errorf("%s: %s, %v", name, d, ok)
		}
	}
	if _, ok := manifestOf(&types.Envelope{Topic: topic}); ok {
		t.Error("an event without content is a manifest")
	}
}

// manifest is an image's manifest with so many layers.
func manifest(t testing.TB, layers int, mediaType string) []byte {
	t.Helper()
	m := ocispec.Manifest{Config: ocispec.DescriptorEmptyJSON}
	for range layers {
		m.Layers = append(m.Layers,
			ocispec.Descriptor{MediaType: mediaType, Digest: someDigest, Size: 1})
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseManifest(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want int
	}{
		"image":          {manifest(t, 3, ocispec.MediaTypeImageLayerGzip), 3},
		"docker's image": {manifest(t, 2, "application/vnd.docker.image.rootfs.diff.tar.gzip"), 2},
		"attestation":    {manifest(t, 2, "application/vnd.in-toto+json"), 0},
		"index":          {[]byte(`{"manifests": [{"digest": "` + someDigest.String() + `"}]}`), 0},
		"no JSON":        {[]byte("\x1f\x8b"), 0},
	} {
		if _, got := parseManifest(c.b); len(got) != c.want {
			t.Errorf("%s: %d layers, want %d", name, len(got), c.want)
		}
	}
}

func TestSource(t *testing.T) {
	for want, labels := range map[string]map[string]string{
		"docker.io/library/debian": {"containerd.io/gc.ref.content.0": "x",
			sourceLabel + "docker.io": "library/debian"},
		"r.example/b": {sourceLabel + "r.example": "b,c"},
		"/":           {sourceLabel: "a", sourceLabel + "x": ""},
	} {
		host, repository, ok := source(labels)
		if got := host + "/" + repository; got != want || ok != (want != "/") {
			t.Errorf("of %v: %s, %v", labels, got, ok)
		}
	}
}

// TestLocate: a registry has the port that the names of the same repository's images have; of one
// that nobody knows it is not guessed.
func TestLocate(t *testing.T) {
	for _, c := range []struct {
		host, repository string
		names            []string
		folders          []string // below config_path
		want             string
	}{
		{"r.test", "a/b", []string{"r.test:5000/a/b:1", "r.test:5000/a/b@sha256:1"}, nil,
			"r.test:5000/a/b"},
		{"r.test", "a/b", []string{"r.test/a/b:1"}, nil, "r.test/a/b"},
		{"::1", "a", []string{"[::1]:5000/a:1"}, nil, "[::1]:5000/a"},
		{"r.test", "a/b", []string{"r.test/a/b:1", "r.test:5000/a/b:1"}, nil, ""},
		{"r.test", "a/b", []string{"r.test:5000/a/b:1", "r.test/c:1"}, nil, "r.test:5000/a/b"},
		{"r.test", "a/b", []string{"r.test/a/c:1", "r.test/a/b/c:1", "rxtest/a/b:1"}, nil,
			"r.test/a/b"},
		{"r.test", "a/b", []string{"r.test:5000/a/c:1", "r.test/c:1"}, nil, ""},
		{"r.test", "a/b", []string{"x.r.test/a/b:1"}, nil, ""},
		{"r.test", "a/b", nil, nil, ""},
		{"r.test", "a/b", nil, []string{"r.test:5000", "x.r.test", "_default"}, "r.test:5000/a/b"},
		{"r.test", "a/b", nil, []string{"r.test_5000_"}, "r.test:5000/a/b"},
		{"r.test", "a/b", nil, []string{"r.test", "r.test:5000"}, ""},
		{"r.test", "a/b", []string{"r.test/a/c:1"}, []string{"r.test:5000"}, ""},
		{"docker.io", "library/debian", nil, nil, "docker.io/library/debian"},
	} {
		w := newWorld(t)
		for _, name := range c.names {
			w.name(name, ocispec.Descriptor{
				MediaType: ocispec.MediaTypeImageManifest, Digest: someDigest, Size: 1,
			})
		}
		for _, folder := range c.folders {
			if err := os.MkdirAll(filepath.Join(w.client.configPath, folder), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		got, err := w.client.locate(w.ctx, c.host, c.repository)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s/%s among %q: %q, %v, want %q", c.host, c.repository, c.names, got, err,
				c.want)
		}
	}
}

// created is containerd's event service, after content was created.
type created struct {
	eventsapi.UnimplementedEventsServer
	all chan ocispec.Descriptor
}

func (c created) Subscribe(
	_ *eventsapi.SubscribeRequest, stream eventsapi.Events_SubscribeServer,
) error {
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case d := <-c.all:
			b, err := proto.Marshal(&events.ContentCreate{Digest: d.Digest.String(), Size: d.Size})
			if err != nil {
				return err
			}
			e := &types.Envelope{Topic: topic, Namespace: "ns", Event: &anypb.Any{Value: b}}
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
}

// TestWatch: of the manifests that come it is told which image begins, over containerd's end too.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	heard := make(chan snapshotter.Image)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.client.Watch(ctx, func([]digest.Digest) {}, func(i snapshotter.Image) { heard <- i })
	}()
	layers := []string{"A", "B"}
	for n, source := range []string{"docker.io", "docker.io", "elsewhere", "docker.io"} {
		if n == 1 {
			w.stop()
			w.start()
		}
		m := w.manifest(layers, []string{fmt.Sprint(n), "b"},
			map[string]string{source: "library/x"})
		w.events.all <- m
		if source == "elsewhere" {
			continue
		}
		i := <-heard
		want := snapshotter.Image{
			Refs: []string{"docker.io/library/x"}, Manifest: m.Digest,
			Layers: []digest.Digest{digest.FromString("A"), digest.FromString("B")},
		}
		if !reflect.DeepEqual(i, want) {
			t.Errorf("heard of %+v, want %+v", i, want)
		}
	}
	w.events.all <- w.manifest(make([]string, maxLayers+1), nil,
		map[string]string{"docker.io": "a"})
	cancel()
	<-ended
}
