package announce

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/events"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

var self = os.Getpid()

var someDigest = digest.FromString("some")

func TestManifestOf(t *testing.T) {
	for name, c := range map[string]struct {
		topic string
		event *events.ContentCreate
		want  bool
	}{
		"a manifest":             {topic, &events.ContentCreate{Digest: someDigest.String(), Size: 700, MediaType: ocispec.MediaTypeImageManifest}, true},
		"of an older containerd": {topic, &events.ContentCreate{Digest: someDigest.String(), Size: 700}, true},
		"an index":               {topic, &events.ContentCreate{Digest: someDigest.String(), Size: 700, MediaType: ocispec.MediaTypeImageIndex}, false},
		"a layer":                {topic, &events.ContentCreate{Digest: someDigest.String(), Size: 7 << 20}, false},
		"another topic":          {"/content/delete", &events.ContentCreate{Digest: someDigest.String()}, false},
		"no digest":              {topic, &events.ContentCreate{Digest: "sha256:../.."}, false},
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
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: someDigest, Size: 1})
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want int
	}{
		"image":          {manifest(t, 3, ocispec.MediaTypeImageLayerGzip), 3},
		"docker's image": {manifest(t, 2, "application/vnd.docker.image.rootfs.diff.tar.gzip"), 2},
		"attestation":    {manifest(t, 2, "application/vnd.in-toto+json"), 0},
		"too many":       {manifest(t, maxLayers+1, ocispec.MediaTypeImageLayer), 0},
		"index":          {[]byte(`{"manifests": [{"digest": "` + someDigest.String() + `"}]}`), 0},
		"no JSON":        {[]byte("\x1f\x8b"), 0},
	} {
		if got := parse(c.b); len(got) != c.want {
			t.Errorf("%s: %d layers, want %d", name, len(got), c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(manifest(f, 2, ocispec.MediaTypeImageLayerGzip))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, d := range parse(b) {
			if err := d.Validate(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSource(t *testing.T) {
	for want, labels := range map[string]map[string]string{
		"docker.io/library/debian": {"containerd.io/gc.ref.content.0": "x", sourceLabel + "docker.io": "library/debian"},
		"r.example/b":              {sourceLabel + "r.example": "b,c"},
		"/":                        {sourceLabel: "a", sourceLabel + "x": ""},
	} {
		host, repository, ok := source(labels)
		if got := host + "/" + repository; got != want || ok != (want != "/") {
			t.Errorf("of %v: %s, %v", labels, got, ok)
		}
	}
}

// TestListening: a process listens where it does, and not where it is connected to, or somebody else listens.
func TestListening(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for _, name := range []string{path, path + ".ttrpc"} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	var here []string
	for _, p := range listening(self) {
		if strings.HasPrefix(p, dir) {
			here = append(here, p)
		}
	}
	if !slices.Equal(here, []string{path}) {
		t.Errorf("listens at %q, want %q", here, path)
	}
	if got := listening(1); slices.Contains(got, path) {
		t.Error("process 1 listens there, too")
	}
}

// connect returns the port of a new server to which there is a connection until the test's end.
func connect(t *testing.T, address string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// serve accepts a connection from an address, until the test's end.
func serve(t *testing.T, client string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	from, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close() })
	to, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
}

func TestConnected(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		peer := connect(t, address)
		if got := connected(self); !slices.Contains(got, peer) {
			t.Errorf("connected to %v, want %v among them", got, peer)
		}
	}
}

// TestWithPort: a registry has the port of the only connection to its host.
func TestWithPort(t *testing.T) {
	const host = "127.0.0.77" // nobody else's
	if got, ok := withPort(t.Context(), self, host); ok {
		t.Errorf("without a connection: %s", got)
	}
	peer := connect(t, host+":0")
	if got, ok := withPort(t.Context(), self, host); got != peer.String() || !ok {
		t.Errorf("with one to %v: %s, %v", peer, got, ok)
	}
	if got, ok := withPort(t.Context(), 0, host); ok {
		t.Errorf("of no process: %s", got)
	}
	const client = "127.0.0.78"
	serve(t, client)
	if got, ok := withPort(t.Context(), self, client); ok {
		t.Errorf("of a host that has connected to this one: %s", got)
	}
	connect(t, host+":0")
	if got, ok := withPort(t.Context(), self, host); ok {
		t.Errorf("with two: %s", got)
	}
	if got, ok := withPort(t.Context(), self, "no such host.invalid"); ok {
		t.Errorf("of a host without address: %s", got)
	}
}

// imageNames is an image store that has names alone, and filters them as containerd's does.
type imageNames []string

func (n imageNames) List(
	_ context.Context, in *imagesapi.ListImagesRequest, _ ...grpc.CallOption,
) (*imagesapi.ListImagesResponse, error) {
	f, err := filters.ParseAll(in.Filters...)
	if err != nil {
		return nil, err
	}
	out := &imagesapi.ListImagesResponse{}
	for _, name := range n {
		field := func(path []string) (string, bool) { return name, path[0] == "name" }
		if f.Match(filters.AdapterFunc(field)) {
			out.Images = append(out.Images, &imagesapi.Image{Name: name})
		}
	}
	return out, nil
}

// TestAuthority: a registry has the port that the names of the same repository's images have; of
// one that nobody knows it is not guessed.
func TestAuthority(t *testing.T) {
	for _, c := range []struct {
		host, repository string
		names            imageNames
		want             string
	}{
		{"r.test", "a/b", imageNames{"r.test:5000/a/b:1", "r.test:5000/a/b@sha256:1"}, "r.test:5000"},
		{"r.test", "a/b", imageNames{"r.test/a/b:1"}, "r.test"},
		{"::1", "a", imageNames{"[::1]:5000/a:1"}, "[::1]:5000"},
		{"r.test", "a/b", imageNames{"r.test/a/b:1", "r.test:5000/a/b:1"}, ""},
		{"r.test", "a/b", imageNames{"r.test/a/c:1", "r.test/a/b/c:1", "rxtest/a/b:1"}, ""},
		{"r.test", "a/b", imageNames{"x.r.test/a/b:1"}, ""},
		{"r.test", "a/b", nil, ""},
		{"docker.io", "library/debian", nil, "docker.io"},
	} {
		got, ok := process{}.authority(t.Context(), c.names, c.host, c.repository)
		if ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%s/%s among %q: %s, %v, want %q",
				c.host, c.repository, c.names, got, ok, c.want)
		}
	}
}
