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

// testLayer is a layer at a stage.
func testLayer(name string, size int64, stage pullStage) *pullLayer {
	return &pullLayer{stage: stage, Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(name), Size: size,
	}}
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
	here := &fs.Status{State: "verified"}
	type layer struct {
		size   int64
		stage  pullStage
		status *fs.Status // nil: micad does not have it
	}
	for name, c := range map[string]struct {
		layers []layer
		whole  int // so many of them
		want   string
	}{
		"lazy": {layers: []layer{{big, served, &fs.Status{State: "lazy"}}, {small, served, here}},
			want: "0 of 52.4 MB downloaded, 2 of 2 layers lazy"},
		"whole": {layers: []layer{{big, served, here}, {big, served, here}}, whole: 1,
			want: "1 of 2 layers lazy, 1 downloaded whole"},
		"by containerd": {layers: []layer{{big, unpacked, nil}, {big, ordinary, nil}},
			want: "0 of 2 layers lazy, 2 unpacked by containerd"},
		"before": {layers: []layer{{big, wasThere, here}, {big, wasThere, nil}},
			want: "1 of 2 layers lazy, 1 unpacked by containerd (2 were here before)"},
	} {
		t.Run(name, func(t *testing.T) {
			var said bytes.Buffer
			w := watchOf(t, &said)
			w.status = map[digest.Digest]fs.Status{}
			for i, x := range c.layers {
				l := testLayer(string(rune('a'+i)), x.size, x.stage)
				w.layers = append(w.layers, l)
				if x.status != nil {
					w.status[l.Digest] = *x.status
				}
			}
			says := ""
			if c.whole > 0 {
				w.whole = &admin.Fallback{Reason: "of zstd"}
				for _, l := range w.layers[:c.whole] {
					w.whole.Whole = append(w.whole.Whole, l.Digest)
				}
				says = w.whole.Text()
			}
			got := strings.Replace(w.result(0), "0 B of", "0 of", 1)
			if !strings.HasPrefix(got, "ready in 0.0 s, ") || !strings.HasSuffix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if (said.Len() > 0) != (says != "") || !strings.Contains(said.String(), says) {
				t.Errorf("says %q, want %q", said.String(), says)
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
	a := testLayer("a", 60<<20, notAsked)
	b := testLayer("b", 40<<20, notAsked)
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
