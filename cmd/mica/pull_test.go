package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs"
)

// testLayer is a layer at a stage, and what micad says of it; nil: nothing.
func testLayer(name string, size int64, stage pullStage, s *fs.Status) (*pullLayer, *fs.Status) {
	l := &pullLayer{stage: stage, Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(name), Size: size,
	}}
	return l, s
}

// watchOf is a watch of a pull of redis, with lines written to said.
func watchOf(t *testing.T, said io.Writer) *pullWatch {
	t.Helper()
	named, err := reference.ParseDockerRef("redis")
	if err != nil {
		t.Fatal(err)
	}
	return newPullWatch(named, nil, &pullLines{w: said})
}

// TestPullResult: the last line counts layers by how they came, and what was not lazy is told with
// the reason.
func TestPullResult(t *testing.T) {
	const big, small = 50 << 20, 1000
	lazy := &fs.Status{State: "lazy"}
	read := &fs.Status{State: "verified", Requests: 3}
	whole := &fs.Status{State: "verified"}
	type layer struct {
		size   int64
		stage  pullStage
		status *fs.Status
		media  string
	}
	for name, c := range map[string]struct {
		layers []layer
		mode   string
		want   string
		says   string
	}{
		"lazy": {layers: []layer{{big, served, lazy, ""}, {small, served, whole, ""}},
			want: "0 of 52.4 MB downloaded, 2 of 2 layers lazy"},
		"read meanwhile": {layers: []layer{{big, served, read, ""}},
			want: "1 of 1 layers lazy"},
		"no index": {layers: []layer{{big, served, whole, ""}, {small, served, whole, ""}},
			want: "0 of 2 layers lazy, 2 downloaded whole",
			says: "mica index create --push docker.io/library/redis:latest"},
		"small without index": {layers: []layer{{small, served, whole, ""}},
			want: "0 of 1 layers lazy, 1 downloaded whole"},
		"mode local": {layers: []layer{{big, served, whole, ""}}, mode: "local",
			want: "0 of 1 layers lazy, 1 downloaded whole", says: "its mode is local"},
		"zstd": {layers: []layer{{big, served, lazy, ""},
			{big, served, whole, ocispec.MediaTypeImageLayerZstd}},
			want: "1 of 2 layers lazy, 1 downloaded whole", says: "zstd"},
		"left out": {layers: []layer{{big, served, lazy, ""}, {big, served, whole, ""}},
			want: "1 of 2 layers lazy, 1 downloaded whole", says: "index leaves it out"},
		"by containerd": {layers: []layer{{big, unpacked, nil, ""}, {big, ordinary, nil, ""}},
			want: "0 of 2 layers lazy, 2 unpacked by containerd"},
		"before": {layers: []layer{{big, wasThere, whole, ""}, {big, wasThere, nil, ""}},
			want: "1 of 2 layers lazy, 1 unpacked by containerd (2 were here before)"},
	} {
		t.Run(name, func(t *testing.T) {
			var said bytes.Buffer
			w := watchOf(t, &said)
			w.mode, w.status = c.mode, map[digest.Digest]fs.Status{}
			for i, x := range c.layers {
				l, s := testLayer(string(rune('a'+i)), x.size, x.stage, x.status)
				if x.media != "" {
					l.MediaType = x.media
				}
				w.layers = append(w.layers, l)
				if s != nil {
					w.status[l.Digest] = *s
				}
			}
			got := strings.Replace(w.result(0), "0 B of", "0 of", 1)
			if !strings.HasPrefix(got, "ready in 0.0 s, ") || !strings.HasSuffix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if (said.Len() > 0) != (c.says != "") || !strings.Contains(said.String(), c.says) {
				t.Errorf("says %q, want %q", said.String(), c.says)
			}
		})
	}
}

// TestPullWaits: at each stage of a pull it is said what is waited for, in less than 80 characters.
func TestPullWaits(t *testing.T) {
	w := watchOf(t, io.Discard)
	check := func(want string) {
		t.Helper()
		if got := w.waitsFor(); !strings.Contains(got, want) || len(got) > 71 {
			t.Errorf("waits for %q (%d characters), want %q", got, len(got), want)
		}
	}
	check("resolving docker.io/library/redis:latest")
	w.target = digest.FromString("manifest")
	check("manifest and configuration")
	a, _ := testLayer("a", 60<<20, notAsked, nil)
	b, _ := testLayer("b", 40<<20, notAsked, nil)
	w.layers = []*pullLayer{a, b}
	check("layer 1 of 2: containerd begins")
	a.stage = asked
	check("layer 1 of 2: micad looks for an index")
	w.received = 1 << 20
	check("looks for an index")
	w.received = 20 << 20
	check("micad downloads what has no index, 21.0 MB of 104.9 MB")
	a.stage, b.stage = served, ordinary
	check("layer 2 of 2: containerd begins to download it")
	b.bar = (&show.Bars{}).Add("b", b.Size)
	blob := b.bar.Reader(bytes.NewReader(make([]byte, b.Size)))
	reads := func(n int64) {
		t.Helper()
		if _, err := io.CopyN(io.Discard, blob, n); err != nil {
			t.Fatal(err)
		}
	}
	reads(10 << 20)
	check("layer 2 of 2: containerd downloads it, 10.5 MB of 41.9 MB")
	reads(b.Size - 10<<20)
	check("layer 2 of 2: containerd unpacks it")
	b.stage = unpacked
	check("containerd to enter the image")
	w.mountedAre([]fs.Status{{Layer: b.Digest, Mode: fs.EROFS}})
	check("1 of 2 layers mounted")
	if !w.mountedAre([]fs.Status{{Layer: a.Digest, Mode: fs.EROFS}}) {
		t.Error("it waits for a layer that is mounted")
	}
}

// TestMetrics: what micad's metrics say is read by name, comments and labels aside.
func TestMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# HELP mica_a x\n# TYPE mica_a counter\nmica_a 12\n"+
			"mica_b{mode=\"erofs\"} 3\nmica_fill_bytes_total 1.5e+06\n")
	})}
	go srv.Serve(l) //nolint:errcheck // it ends with the test
	t.Cleanup(func() { srv.Close() })
	got, err := admin.NewClient(path).Metrics(t.Context())
	if err != nil || got["mica_a"] != 12 || got["mica_fill_bytes_total"] != 1.5e6 {
		t.Errorf("got %v, %v", got, err)
	}
}
