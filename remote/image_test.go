package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	reg "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReferences(t *testing.T) {
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	sum := digest.FromString("x").String()
	for _, ref := range []string{"", "x", "reg.test", "reg.test/", "http://reg.test/a:1",
		"reg.test/../a:1", "reg.test/a@sha256:12"} {
		if _, err := c.Image(ref); err == nil {
			t.Errorf("%q: no error", ref)
		}
	}
	a, b := mustImage(t, c, "docker.io/library/x:1"), mustImage(t, c, "docker.io/library/x:2@"+sum)
	if a.repo.String() != "docker.io/library/x" || a.tag != "1" || b.tag != "2" ||
		b.digest.String() != sum {
		t.Errorf("%+v %+v", a, b)
	}
	d := ocispec.Descriptor{Digest: digest.FromString("x")}
	if c.blobs.Target(a.repo, d.Digest) != c.blobs.Target(b.repo, d.Digest) {
		t.Error("images of one repository do not share what is known of a blob")
	}
	manifest := make([]byte, maxKept/4)
	for k := range 10 {
		d.Digest = digest.FromString(fmt.Sprint(k))
		a.keep(d.Digest, manifest)
		if a.keptManifest(d.Digest) == nil || b.keptManifest(d.Digest) == nil || c.size > maxKept {
			t.Errorf("manifest %d is not kept, or too much is: %d bytes", k, c.size)
		}
	}
	if mustImage(t, c, "docker.io/library/y:1").keptManifest(d.Digest) != nil {
		t.Error("a manifest that one repository gave is another's")
	}
}

// TestManifests checks resolving, fetching and refusing of manifests.
func TestManifests(t *testing.T) {
	good := []byte(`{"schemaVersion":2,"layers":[],"config":{}}`)
	sum := digest.FromBytes(good)
	for _, tc := range []struct {
		name, ref string
		serve     http.HandlerFunc
		err       error
		media     string
	}{
		{"by tag", "reg.test/a:1", answer(200, string(good), "Content-Type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8"), nil, ocispec.MediaTypeImageManifest},
		{"by digest", "reg.test/a@" + sum.String(), answer(200, string(good)), nil,
			ocispec.MediaTypeImageManifest},
		{"its own type counts", "reg.test/a:1",
			answer(200, `{"mediaType":"x/y"}`, "Content-Type", "application/json"), nil, "x/y"},
		{"other digest in header", "reg.test/a:1",
			answer(200, string(good), "Docker-Content-Digest",
				digest.FromString("x").String()), ErrCorrupt, ""},
		{"nonsense in header", "reg.test/a:1",
			answer(200, string(good), "Docker-Content-Digest", "sha256:x"), ErrCorrupt, ""},
		{"other bytes", "reg.test/a@" + sum.String(), answer(200, string(good)+" "), ErrCorrupt,
			""},
		{"no JSON", "reg.test/a:1", answer(200, "hello"), ErrCorrupt, ""},
		{"too large", "reg.test/a:1", answer(200, strings.Repeat(" ", MaxManifest+1)), ErrTooLarge,
			""},
		{"too large, said before", "reg.test/a:1",
			answer(200, "", "Content-Length", fmt.Sprint(MaxManifest+1)), ErrTooLarge, ""},
		{"none", "reg.test/a:1", answer(404, ""), ErrNotFound, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				g.handle["/v2/a/manifests/"] = tc.serve
				defer net.serve("reg.test", g)()
				c := net.client(Config{})
				defer c.Close()
				i := mustImage(t, c, tc.ref)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				d, err := i.Resolve(ctx)
				if !errors.Is(err, tc.err) || (err != nil && ctx.Err() != nil) {
					t.Fatalf("resolve: %v, want %v", err, tc.err)
				}
				if err != nil {
					return
				}
				if d.MediaType != tc.media {
					t.Errorf("media type %q", d.MediaType)
				}
				b, err := i.Manifest(ctx, ocispec.Descriptor{Digest: d.Digest, Size: d.Size})
				if err != nil || digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
					t.Errorf("manifest: %q, %v", b, err)
				}
				if l := g.requests(""); len(l) != 1 {
					t.Errorf("requests %q, want one for both", l)
				}
			})
		})
	}
}

func TestFetchBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		blob := randomBytes(5000)
		d := g.add(blob)
		g.fault = first(3, cut(blob, 100))
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a:1")
		if b, err := i.FetchBlob(t.Context(), d, 5000); err != nil || !bytes.Equal(b, blob) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		if _, err := i.FetchBlob(t.Context(), d, 4999); !errors.Is(err, ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
		g.blobs[d.Digest] = randomBytes(4999)
		if _, err := i.FetchBlob(t.Context(), d, 5000); !errors.Is(err, ErrCorrupt) {
			t.Errorf("another blob: %v", err)
		}
		d.Size = 4999
		g.blobs[d.Digest] = blob
		if _, err := i.FetchBlob(t.Context(), d, 5000); !errors.Is(err, ErrTooLarge) {
			t.Errorf("longer than its descriptor: %v", err)
		}
	})
}

func referrersJSON(ds ...ocispec.Descriptor) string {
	b, _ := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex,
		Manifests: append([]ocispec.Descriptor{}, ds...)})
	return string(b)
}

func referrer(name, kind string) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: 10,
		ArtifactType: kind,
		Annotations:  map[string]string{"name": name},
	}
}

// TestReferrers checks the API, its pages, the fallback tag, and that what is known of a host saves
// requests.
func TestReferrers(t *testing.T) {
	subject := digest.FromString("subject")
	a1, a2, b1 := referrer("a1", "type/a"), referrer("a2", "type/a"), referrer("b1", "type/b")
	api := "/v2/a/b/referrers/" + subject.String()
	tag := "/v2/a/b/manifests/" + "sha256-" + subject.Encoded()
	page2 := func(link string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("page") == "2" {
				answer(200, referrersJSON(b1, a2))(w, r)
				return
			}
			answer(200, referrersJSON(a1), "Link", link)(w, r)
		}
	}
	for _, tc := range []struct {
		name     string
		api, tag http.HandlerFunc
		want     string
		// for two calls, of which the first does not know the host and asks for both at once
		requests int
		fails    bool
	}{
		{"API", answer(200, referrersJSON(a1)), nil, "[a1]", 3, false},
		{"API that does not filter", answer(200, referrersJSON(b1, a1)), nil, "[a1]", 3, false},
		{"API with none", answer(200, referrersJSON()), answer(200, referrersJSON(a1)), "[]", 3,
			false},
		{"pages", page2(`<` + api + `?page=2>; rel="next"`), nil, "[a1 a2]", 5, false},
		{"pages, absolute", page2(`<http://reg.test` + api + `?page=2>; rel=next`), nil, "[a1 a2]",
			5, false},
		{"pages, relative", page2(`</nowhere>; rel="prev", <?page=2>;rel="next"`), nil, "[a1 a2]",
			5, false},
		{"pages at another host", page2(`<http://evil.test` + api + `?page=2>; rel=next`), nil,
			"[a1]", 3, false},
		{"pages in a circle", answer(200, referrersJSON(b1), "Link", `<`+api+`>; rel="next"`), nil,
			"[]", 5, false},
		{"pages without end", func(w http.ResponseWriter, r *http.Request) {
			next := fmt.Sprintf(`<%s?page=1%s>; rel="next"`, api, r.URL.Query().Get("page"))
			answer(200, referrersJSON(b1), "Link", next)(w, r)
		}, nil, "[]", 0, true},
		{"no API, tag", answer(404, ""), answer(200, referrersJSON(b1, a2, a1)), "[a2 a1]", 3,
			false},
		{"no API, no tag", answer(404, ""), answer(404, ""), "[]", 3, false},
		{"405", answer(405, ""), answer(200, referrersJSON(a1)), "[a1]", 3, false},
		{"HTML for an API", answer(200, "<html>", "Content-Type", "text/html"),
			answer(200, referrersJSON(a1)), "[a1]", 3, false},
		{"403 for an API", answer(403, ""), answer(200, referrersJSON(a1)), "[a1]", 4, false},
		{"unknown repository",
			answer(404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`, "Content-Type",
				"application/json"), answer(404, ""), "[]", 4, false},
		{"bad entries", answer(200, `{"manifests":[{"digest":"sha256:../..","artifactType":"type/a"},{"digest":"`+a1.Digest.String()+
			`","size":-5,"artifactType":"type/a"}]}`), nil, "[]", 3, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				g.handle[api] = tc.api
				if tc.tag != nil {
					g.handle[tag] = tc.tag
				}
				defer net.serve("reg.test", g)()
				c := net.client(Config{})
				defer c.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for range 2 {
					found, err := mustImage(t, c, "reg.test/a/b:1").Referrers(ctx, subject,
						"type/a")
					if (err != nil) != tc.fails {
						t.Fatalf("error %v", err)
					}
					if got := fmt.Sprint(names(found)); got != tc.want {
						t.Errorf("found %s, want %s", got, tc.want)
					}
				}
				// Where the API answers, the request for the tag is given up, before it was sent or
				// after.
				least := tc.requests
				if tc.tag == nil || tc.name == "API with none" {
					least--
				}
				if l := g.requests(""); !tc.fails && (len(l) < least || len(l) > tc.requests) {
					t.Errorf("requests %q, want %d to %d", l, least, tc.requests)
				}
			})
		})
	}
}

func names(ds []ocispec.Descriptor) (out []string) {
	for _, d := range ds {
		out = append(out, d.Annotations["name"])
	}
	return out
}

// TestMirrorWithoutReferrers checks that a mirror which knows of no referrers does not hide those
// of the registry.
func TestMirrorWithoutReferrers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		m, up := newRegistry("m1.test"), newRegistry("up.test")
		m.handle["/v2/a/b/referrers/"] = answer(200, referrersJSON())
		up.handle["/v2/a/b/referrers/"] = answer(200, referrersJSON(referrer("r", "k")))
		defer net.serve("m1.test", m)()
		defer net.serve("up.test", up)()
		// The registry is up.test itself, the mirror stands before it.
		c := net.client(Config{ConfigPath: hostsToml(t, "up.test",
			"server = \"http://up.test\"\n[host.\"http://m1.test\"]\n")})
		defer c.Close()
		found, err := mustImage(t, c, "up.test/a/b:1").Referrers(t.Context(),
			digest.FromString("s"), "k")
		if err != nil || len(found) != 1 {
			t.Errorf("%v, %v", found, err)
		}
	})
}

// countedBody counts what is read of a request's body.
type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// TestPush pushes an image and two indexes of it to go-containerregistry's registry, with its
// referrers API and without.
func TestPush(t *testing.T) {
	for _, api := range []bool{true, false} {
		t.Run(fmt.Sprintf("API %v", api), func(t *testing.T) {
			inner := reg.New(reg.Logger(log.New(io.Discard, "", 0)), reg.WithReferrersSupport(api))
			var mu sync.Mutex
			var up atomic.Int64
			bad := map[string]int{"POST": 2, "PUT": 2} // that many of each fail
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				fail := bad[r.Method] > 0
				bad[r.Method]--
				mu.Unlock()
				if fail {
					_, _ = io.CopyN(io.Discard, r.Body, 1000)
					w.WriteHeader(http.StatusBadGateway)
					return
				}
				if api && r.Method == http.MethodPut &&
					strings.Contains(r.URL.Path, "/manifests/") {
					w.Header().Set("OCI-Subject", "yes")
				}
				r.Body = countedBody{r.Body, &up}
				inner.ServeHTTP(w, r)
			}))
			defer srv.Close()
			c, err := New(Config{MinBackoff: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			i := mustImage(t, c, strings.TrimPrefix(srv.URL, "http://")+"/a/b:1")
			blob := randomBytes(300_000)
			d := ocispec.Descriptor{MediaType: "application/octet-stream",
				Digest: digest.FromBytes(blob), Size: int64(len(blob))}
			for range 2 {
				if err := i.PushBlob(t.Context(), d, bytes.NewReader(blob)); err != nil {
					t.Fatal(err)
				}
			}
			if n := up.Load(); n != int64(len(blob)) {
				t.Errorf("%d bytes were taken for one blob of %d", n, len(blob))
			}
			m, _ := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
				Config: d, Layers: []ocispec.Descriptor{d}})
			image, _, err := i.putManifest(t.Context(), ocispec.MediaTypeImageManifest, m, "1")
			if err != nil {
				t.Fatal(err)
			}
			got, err := i.Resolve(t.Context())
			if err != nil || got.Digest != image.Digest {
				t.Fatalf("resolved %v, %v", got.Digest, err)
			}
			// This registry takes the artifact type from the config alone, and lists no
			// annotations.
			config := ocispec.DescriptorEmptyJSON
			if err := i.PushBlob(t.Context(), config, bytes.NewReader(config.Data)); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, name := range []string{"one", "two", "two"} {
				r, err := i.PushReferrer(t.Context(), image, ocispec.Manifest{
					ArtifactType: "type/index", Config: config, Layers: []ocispec.Descriptor{d},
					Annotations: map[string]string{"name": name},
				})
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Contains(want, r.Digest.String()) {
					want = append(want, r.Digest.String())
				}
			}
			found, err := i.Referrers(t.Context(), image.Digest, "type/index")
			if err != nil {
				t.Fatal(err)
			}
			var have []string
			for _, f := range found {
				have = append(have, f.Digest.String())
				if f.Annotations["name"] == "" {
					t.Errorf("no annotations: %+v", f)
				}
			}
			slices.Sort(want)
			slices.Sort(have)
			if !slices.Equal(have, want) {
				t.Errorf("referrers %q, want %q", have, want)
			}
			if other, err := i.Referrers(t.Context(), image.Digest, "other"); err != nil ||
				len(other) != 0 {
				t.Errorf("of another type: %v, %v", other, err)
			}
			p := make([]byte, 100_000)
			if err := i.Blob(d).ReadAt(t.Context(), p, 12_345); err != nil ||
				!bytes.Equal(p, blob[12_345:112_345]) {
				t.Error(err)
			}
		})
	}
}

// TestPushLocation checks relative and absolute upload addresses, another upload host, the scope,
// and a source that fails.
func TestPushLocation(t *testing.T) {
	blob := []byte("a small blob")
	d := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	for _, location := range []string{"/up/1?state=x", "http://reg.test/up/1?state=x",
		"http://cdn.test/up/1?state=x", "https://reg.test/up/1?state=x"} {
		t.Run(location, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g, tokens := newRegistry("reg.test"), newTokenServer(time.Hour, true)
				g.auth = tokens.check
				g.handle["/v2/a/b/blobs/uploads/"] = answer(202, "", "Location", location)
				var got []byte
				put := func(w http.ResponseWriter, r *http.Request) {
					want := url.Values{"state": {"x"}, "digest": {d.Digest.String()}}
					if r.Method != http.MethodPut || r.URL.Query().Encode() != want.Encode() {
						t.Errorf("%s %s", r.Method, r.URL)
					}
					if r.Host != "reg.test" && r.Header.Get("Authorization") != "" {
						t.Error("credentials were sent to another host")
					}
					got, _ = io.ReadAll(r.Body)
					w.WriteHeader(http.StatusCreated)
				}
				g.handle["/up/1"] = put
				defer net.serve("reg.test", g)()
				defer net.serve("cdn.test", http.HandlerFunc(put))()
				defer net.serve("auth.test", tokens)()
				c := net.client(Config{})
				defer c.Close()
				i := mustImage(t, c, "reg.test/a/b:1")
				if err := i.PushBlob(t.Context(), d, bytes.NewReader(blob)); err != nil ||
					!bytes.Equal(got, blob) {
					t.Errorf("%q, %v", got, err)
				}
				if len(tokens.asked) != 1 ||
					!strings.Contains(tokens.asked[0],
						url.QueryEscape("repository:a/b:pull,push")) {
					t.Errorf("token server was asked %q", tokens.asked)
				}
				if err := i.PushBlob(t.Context(), d, brokenSeeker{}); !errors.Is(err, errBroken) {
					t.Errorf("broken source: %v", err)
				}
			})
		})
	}
}

var errBroken = errors.New("it cannot be read")

type brokenSeeker struct{}

func (brokenSeeker) Read([]byte) (int, error)       { return 0, errBroken }
func (brokenSeeker) Seek(int64, int) (int64, error) { return 0, nil }
