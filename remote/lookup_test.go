package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	listPath = "/v2/a/b/referrers/"
	tagPath  = "/v2/a/b/manifests/sha256-"
)

// silence answers when its client has left.
func silence(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// lookUp asks for what refers to an image, and how long that takes.
func lookUp(t *testing.T, c *Client, ref string, types ...string) (string, time.Duration, error) {
	t.Helper()
	start := time.Now()
	found, err := mustImage(t, c, ref).Referrers(t.Context(), digest.FromString("s"), types...)
	return fmt.Sprint(names(found)), time.Since(start), err
}

// TestLookupBound: a host that does not answer for referrers costs a few seconds, once in an hour;
// it is trusted again when it answers; and all the while its blobs are read without delay.
func TestLookupBound(t *testing.T) {
	for name, fault := range map[string]http.HandlerFunc{
		"502":        answer(502, ""),
		"hang":       silence,
		"429":        answer(429, ""),
		"429, long":  answer(429, "", "Retry-After", "60"),
		"303 to 429": answer(303, "", "Location", "http://other.test/busy"),
		"303 to 502": answer(303, "", "Location", "http://other.test/broken"),
		"trickle": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done(): // the test may be over before the next second is
				case <-time.After(time.Second):
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g, other := newRegistry("reg.test"), newRegistry("other.test")
				g.on(listPath, fault)
				other.handle["/busy"] = answer(429, "", "Retry-After", "60")
				other.handle["/broken"] = answer(502, "")
				blob := randomBytes(1000)
				d := g.add(blob)
				defer net.serve("reg.test", g)()
				defer net.serve("other.test", other)()
				c := net.client(Config{})
				defer c.Close()
				reading := make(chan error)
				read := func() {
					start := time.Now()
					err := mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(t.Context(),
						make([]byte, 10), 5)
					if took := time.Since(start); took > 0 && err == nil {
						err = fmt.Errorf("it took %v", took)
					}
					reading <- err
				}
				time.AfterFunc(100*time.Millisecond, read)
				_, took, err := lookUp(t, c, "reg.test/a/b:1")
				if err == nil || took > 4*time.Second {
					t.Errorf("the first took %v, %v", took, err)
				}
				if err := <-reading; err != nil {
					t.Errorf("read during the look-up: %v", err)
				}
				time.Sleep(2 * probeTimeout)
				before := len(g.requests(listPath))
				time.Sleep(time.Minute)
				if n := len(g.requests(listPath)) - before; n > 0 {
					t.Errorf("%d requests while nobody looks anything up", n)
				}
				for range 3 {
					if _, took, err := lookUp(t, c, "reg.test/a/b:2"); err == nil ||
						took > doubtedTimeout {
						t.Errorf("one soon after it took %v, %v", took, err)
					}
				}
				go read()
				if err := <-reading; err != nil {
					t.Errorf("read after the look-up: %v", err)
				}
				time.Sleep(doubtedFor)
				if _, took, err := lookUp(t, c, "reg.test/a/b:3"); err == nil ||
					took > 4*time.Second {
					t.Errorf("an hour later it took %v, %v", took, err)
				}
				g.on(listPath, answer(200, referrersJSON(referrer("r", "k"))))
				for range 2 {
					if got, took, err := lookUp(t, c, "reg.test/a/b:4"); got != "[r]" || took > 0 {
						t.Errorf("answered again: %s, %v, %v", got, took, err)
					}
				}
				g.on(listPath, silence)
				if _, took, err := lookUp(t, c, "reg.test/a/b:5"); err == nil ||
					took != 4*time.Second {
					t.Errorf("trusted again, it took %v, %v", took, err)
				}
			})
		})
	}
}

// TestLookupRecovers: a host that is doubted, answers again, and takes its time, is trusted again.
func TestLookupRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		g.on(listPath, silence)
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		if _, _, err := lookUp(t, c, "reg.test/a/b:1"); err == nil {
			t.Error("no error")
		}
		time.Sleep(probeTimeout)
		g.on(listPath, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Second)
			answer(200, referrersJSON(referrer("r", "k")))(w, r)
		})
		if _, took, err := lookUp(t, c, "reg.test/a/b:1"); err == nil || took > doubtedTimeout {
			t.Errorf("doubted: %v, %v", took, err)
		}
		time.Sleep(15 * time.Second)
		g.on(listPath, answer(200, referrersJSON(referrer("r", "k"))))
		if got, _, err := lookUp(t, c, "reg.test/a/b:1"); got != "[r]" || err != nil {
			t.Errorf("found %s, %v", got, err)
		}
		g.on(listPath, silence)
		if _, took, err := lookUp(t, c, "reg.test/a/b:1"); err == nil || took < 4*time.Second {
			t.Errorf("trusted again: %v, %v", took, err)
		}
	})
}

// TestLookupByTag: where the API is in trouble the tag's list counts.
func TestLookupByTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		g.on(listPath, silence)
		g.on(tagPath, answer(200, referrersJSON(referrer("r", "k"))))
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		for _, most := range []time.Duration{4 * time.Second, doubtedTimeout} {
			if got, took, err := lookUp(t, c, "reg.test/a/b:1"); got != "[r]" || took > most ||
				err != nil {
				t.Errorf("found %s in %v, %v; want it within %v", got, took, err, most)
			}
		}
	})
}

// TestLookupHosts: who is asked in which order, and for how long.
func TestLookupHosts(t *testing.T) {
	found := answer(200, referrersJSON(referrer("r", "k")))
	for _, tc := range []struct {
		name        string
		caps        string // of the mirror
		mirror      map[string]http.HandlerFunc
		up          map[string]http.HandlerFunc // nil: it refuses connections
		upHangs     bool                        // it is a black hole
		mirrorHangs bool
		want        string
		took        [2]time.Duration // at most: of the first, and of the second
	}{
		{name: "mirror's tag, dead origin", caps: `["pull", "resolve"]`, want: "[r]",
			mirror: map[string]http.HandlerFunc{tagPath: found}},
		{name: "mirror's tag, black hole", caps: `["pull", "resolve"]`, want: "[r]", upHangs: true,
			mirror: map[string]http.HandlerFunc{tagPath: found}},
		{name: "mirror's API, black hole", caps: `["pull", "resolve"]`, want: "[r]", upHangs: true,
			mirror: map[string]http.HandlerFunc{listPath: found}},
		{name: "mirror without, black hole", caps: `["pull", "resolve"]`, want: "[]", upHangs: true,
			mirror: map[string]http.HandlerFunc{},
			took:   [2]time.Duration{4 * time.Second, doubtedTimeout}},
		{name: "mirror that may not resolve", caps: `["pull"]`, want: "[]", upHangs: true,
			mirror: map[string]http.HandlerFunc{listPath: found, tagPath: found},
			took:   [2]time.Duration{4 * time.Second, doubtedTimeout}},
		{name: "mirror is a black hole", caps: `["pull", "resolve"]`, want: "[r]",
			mirrorHangs: true,
			up:          map[string]http.HandlerFunc{listPath: found},
			took:        [2]time.Duration{nextHostAfter, 0}},
		{name: "mirror hangs", caps: `["pull", "resolve"]`, want: "[r]",
			mirror: map[string]http.HandlerFunc{listPath: silence},
			up:     map[string]http.HandlerFunc{listPath: found},
			took:   [2]time.Duration{nextHostAfter, 0}},
		{name: "mirror is down", caps: `["pull", "resolve"]`, want: "[r]",
			up: map[string]http.HandlerFunc{listPath: found}},
		{name: "mirror's tag, its API broken, dead origin", caps: `["pull", "resolve"]`,
			want:   "[r]",
			mirror: map[string]http.HandlerFunc{listPath: answer(502, ""), tagPath: found},
			took:   [2]time.Duration{200 * time.Millisecond, 200 * time.Millisecond}},
		{name: "mirror refuses", caps: `["pull", "resolve"]`, want: "[r]",
			mirror: map[string]http.HandlerFunc{listPath: answer(429, "", "Retry-After", "60")},
			up:     map[string]http.HandlerFunc{listPath: found},
			took:   [2]time.Duration{nextHostAfter, nextHostAfter}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := newNetwork(t)
				serve := func(name string, handle map[string]http.HandlerFunc, hole bool) {
					switch {
					case hole:
						done := make(chan struct{})
						network.at[name+":80"] = &listener{conns: make(chan net.Conn), done: done}
					case handle != nil:
						g := newRegistry(name)
						g.handle = handle
						t.Cleanup(network.serve(name, g))
					}
				}
				serve("m.test", tc.mirror, tc.mirrorHangs)
				serve("up.test", tc.up, tc.upHangs)
				c := network.client(Config{ConfigPath: hostsToml(t, "up.test",
					"server = \"http://up.test\"\n[host.\"http://m.test\"]\ncapabilities = "+tc.caps+"\n")})
				defer c.Close()
				for _, most := range tc.took {
					got, took, err := lookUp(t, c, "up.test/a/b:1", "k")
					if got != tc.want || took > most {
						t.Errorf("found %s in %v, %v; want %s within %v", got, took, err, tc.want,
							most)
					}
				}
			})
		})
	}
}

// TestRepeatedServer: a server that is repeated among the hosts is one host, with the headers (and
// the CA) that stand there, and may do all that the server may.
func TestRepeatedServer(t *testing.T) {
	for _, server := range []string{"http://up.test", "http://up.test:80", "http://up.test/v2"} {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork(t)
			g := newRegistry("up.test")
			g.auth = func(r *http.Request) (string, int) {
				if r.Header.Get("X-Own") == "" {
					return "", http.StatusForbidden
				}
				return "", 0
			}
			g.on(listPath, answer(200, referrersJSON(referrer("r", "k"))))
			defer net.serve("up.test", g)()
			c := net.client(Config{ConfigPath: hostsToml(t, "up.test", "server = \""+server+
				"\"\n[host.\"http://up.test\"]\ncapabilities = [\"pull\"]\n"+
				"[host.\"http://up.test\".header]\nX-Own = \"yes\"\n")})
			defer c.Close()
			if got, _, err := lookUp(t, c, "up.test/a/b:1"); got != "[r]" || err != nil {
				t.Errorf("%s: found %s, %v", server, got, err)
			}
			log := g.requests("")
			for k, h := range g.headers() {
				if h.Get("X-Own") == "" {
					t.Errorf("%s: request without the header: %s", server, log[k])
				}
			}
		})
	}
}

// TestNullList: a list that is null or missing is empty, and no reason not to ask again. What
// stands at the tag counts.
func TestNullList(t *testing.T) {
	const index = `{"schemaVersion": 2, "mediaType": "` + ocispec.MediaTypeImageIndex + `"`
	for _, list := range []string{index + `, "manifests": null}`, index + `}`,
		`{"manifests": null}`} {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork(t)
			g := newRegistry("reg.test")
			g.on(listPath, answer(200, list))
			defer net.serve("reg.test", g)()
			c := net.client(Config{})
			defer c.Close()
			for n := range 2 {
				if got, _, err := lookUp(t, c, "reg.test/a/b:1"); got != "[]" || err != nil {
					t.Errorf("%s: found %s, %v", list, got, err)
				}
				if l := g.requests(listPath); len(l) != n+1 {
					t.Errorf("%s: requests %q", list, l)
				}
			}
			g.on(tagPath, answer(200, referrersJSON(referrer("r", "k"))))
			if got, _, err := lookUp(t, c, "reg.test/a/b:1"); got != "[r]" || err != nil {
				t.Errorf("%s: found %s at the tag, %v", list, got, err)
			}
			g.on(listPath, answer(200, referrersJSON(referrer("q", "k"))))
			if got, _, err := lookUp(t, c, "reg.test/a/b:2"); got != "[q]" || err != nil {
				t.Errorf("%s: found %s by the API, %v", list, got, err)
			}
		})
	}
}

// TestUntyped: an artifact is found among any number of others in a list that does not say what
// they are: by the tag, which costs no further request, or by some manifests, the largest first.
func TestUntyped(t *testing.T) {
	for _, tag := range []bool{true, false} {
		t.Run(fmt.Sprintf("tag %v", tag), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				defer net.serve("reg.test", g)()
				var list []ocispec.Descriptor
				var ours ocispec.Descriptor
				for n := range 50 {
					m := ocispec.Manifest{
						MediaType:   ocispec.MediaTypeImageManifest,
						Config:      ocispec.DescriptorEmptyJSON,
						Annotations: map[string]string{"n": fmt.Sprint(n)},
					}
					if n == 20 {
						m.ArtifactType = "k"
						m.Annotations = map[string]string{"name": "r",
							"long": "enough to be larger"}
					}
					b, err := json.Marshal(m)
					if err != nil {
						t.Fatal(err)
					}
					d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(b),
						Size: int64(len(b))}
					g.manifests[d.Digest.String()] = b
					list = append(list, d)
					list[n].ArtifactType = ocispec.MediaTypeEmptyJSON
					if n == 20 {
						ours, ours.ArtifactType, ours.Annotations = d, "k", m.Annotations
					}
				}
				g.on(listPath, answer(200, referrersJSON(list...)))
				want := maxUntyped
				if tag {
					g.on(tagPath, answer(200, referrersJSON(ours)))
					want = 0
				}
				c := net.client(Config{})
				defer c.Close()
				for range 2 {
					if got, _, err := lookUp(t, c, "reg.test/a/b:1", "k", "other"); got != "[r]" ||
						err != nil {
						t.Errorf("found %s, %v", got, err)
					}
				}
				if l := g.requests("/manifests/sha256:"); len(l) != want {
					t.Errorf("%d manifests are fetched, want %d", len(l), want)
				}
			})
		})
	}
}

// TestForeignPage: nobody is asked for a next page at another host.
func TestForeignPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, evil := newRegistry("reg.test"), newRegistry("evil.test")
		g.on(listPath, answer(200, referrersJSON(referrer("r", "k")),
			"Link", `<http://evil.test/v2/x/referrers/y?n=2>; rel="next"`))
		defer net.serve("reg.test", g)()
		defer net.serve("evil.test", evil)()
		c := net.client(Config{})
		defer c.Close()
		if got, took, err := lookUp(t, c, "reg.test/a/b:1"); got != "[r]" || err != nil ||
			took > 0 {
			t.Errorf("found %s in %v, %v", got, took, err)
		}
		if l := evil.requests(""); len(l) > 0 {
			t.Errorf("requests to the other host: %q", l)
		}
	})
}

// TestLaterPage: what a first page lists counts, though the next one does not come.
func TestLaterPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		g.on(listPath, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("page") != "" {
				silence(w, r)
				return
			}
			answer(200, referrersJSON(referrer("r", "k")), "Link", `<?page=2>; rel="next"`)(w, r)
		})
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		for _, most := range []time.Duration{4 * time.Second, doubtedTimeout} {
			if got, took, err := lookUp(t, c, "reg.test/a/b:1"); got != "[r]" || took > most {
				t.Errorf("found %s in %v, %v; want it within %v", got, took, err, most)
			}
		}
	})
}

// TestLookupLeads: a look-up that is not answered is not waited for by the repository's first
// reads.
func TestLookupLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		g.on(listPath, silence)
		d := g.add(randomBytes(1000))
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		looked := make(chan error)
		go func() {
			_, _, err := lookUp(t, c, "reg.test/a/b:1")
			looked <- err
		}()
		synctest.Wait()
		start := time.Now()
		err := mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(t.Context(), make([]byte, 10), 0)
		if took := time.Since(start); took > 0 || err != nil {
			t.Errorf("read in %v, %v", took, err)
		}
		if err := <-looked; !errors.Is(err, errNoList) {
			t.Errorf("look-up: %v", err)
		}
	})
}

// TestAside: what a blob that one can do without meets is not held against the host in other reads.
func TestAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		trees, other := g.add(randomBytes(1000)), g.add(randomBytes(2000))
		g.handle["/v2/a/b/blobs/"+trees.Digest.String()] = answer(429, "", "Retry-After", "60")
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:1")
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if err := i.Blob(trees).Aside().ReadAt(ctx, make([]byte, 10), 0); err == nil {
			t.Error("no error")
		}
		start := time.Now()
		err := i.Blob(other).ReadAt(t.Context(), make([]byte, 10), 0)
		if took := time.Since(start); took > 0 || err != nil {
			t.Errorf("read of another blob in %v, %v", took, err)
		}
	})
}

// TestSmallRetryAfter: what a host asks for when it is asked for a manifest concerns no blob.
func TestSmallRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		g.handle["/v2/a/b/manifests/"] = answer(429, "", "Retry-After", "60")
		d := g.add(randomBytes(1000))
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:1")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := i.Resolve(ctx); err == nil {
			t.Error("no error")
		}
		start := time.Now()
		err := i.Blob(d).ReadAt(t.Context(), make([]byte, 10), 0)
		if took := time.Since(start); took > 0 || err != nil {
			t.Errorf("read of a blob in %v, %v", took, err)
		}
	})
}
