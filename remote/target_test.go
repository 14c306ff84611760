package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/remote/creds"
)

// signer redirects blob requests to URLs at a content server which end after a while.
type signer struct {
	to     *fakeRegistry
	life   time.Duration
	say    bool // in the URL
	refuse int  // status for an expired URL
}

func (s signer) redirect(_ int, w http.ResponseWriter, r *http.Request) bool {
	end := time.Now().Add(s.life)
	q := url.Values{"sig": {fmt.Sprint(end.UnixNano())}}
	if s.say {
		q.Set("X-Amz-Date", time.Now().UTC().Format("20060102T150405Z"))
		q.Set("X-Amz-Expires", fmt.Sprint(int(s.life/time.Second)))
	}
	http.Redirect(w, r, "http://"+s.to.name+r.URL.Path+"?"+q.Encode(), http.StatusTemporaryRedirect)
	return true
}

func (s signer) check(t *testing.T) func(r *http.Request) (string, int) {
	return func(r *http.Request) (string, int) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Secret") != "" {
			t.Errorf("credentials were sent to the redirect target: %v", r.Header)
		}
		var end int64
		_, _ = fmt.Sscan(r.URL.Query().Get("sig"), &end)
		if time.Now().UnixNano() > end {
			return "", s.refuse
		}
		return "", 0
	}
}

// TestRedirects reads two blobs by ten readers, for an hour, through signed URLs that live five
// minutes.
func TestRedirects(t *testing.T) {
	for _, s := range []signer{
		{life: 5 * time.Minute, say: true, refuse: 403},
		{life: 5 * time.Minute, refuse: 400},
		{life: 5 * time.Minute, refuse: 401},
		{life: 5 * time.Minute, refuse: 403},
	} {
		t.Run(fmt.Sprintf("says %v, refuses with %d", s.say, s.refuse), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g, cdn, tokens := newRegistry("reg.test"), newRegistry("cdn.test"), newTokenServer(time.Hour, true)
				s.to = cdn
				g.auth, g.fault, cdn.auth = tokens.check, s.redirect, s.check(t)
				defer net.serve("reg.test", g)()
				defer net.serve("cdn.test", cdn)()
				defer net.serve("auth.test", tokens)()
				c := net.client(Config{ConfigPath: hostsToml(t, "reg.test",
					"server = \"http://reg.test\"\n[header]\nX-Secret = \"s\"\n")})
				defer c.Close()
				i := mustImage(t, c, "reg.test/a/b:1")
				blobs := [][]byte{randomBytes(10_000), randomBytes(20_000)}
				for range 61 {
					var wg sync.WaitGroup
					for k := range 10 {
						b := blobs[k%2]
						d := cdn.add(b)
						wg.Go(func() {
							p := make([]byte, 5000)
							if err := i.Blob(d).ReadAt(t.Context(), p, 10); err != nil ||
								!bytes.Equal(p, b[10:5010]) {
								t.Error(err)
							}
						})
					}
					wg.Wait()
					time.Sleep(time.Minute)
				}
				// One refusal for the token; then one question per blob and five minutes.
				if n := len(g.requests("/blobs/")); n < 2*10 || n > 2*16+3 {
					t.Errorf("the registry was asked %d times", n)
				}
				refused := len(cdn.requests("")) - 610
				if s.say && refused != 0 {
					t.Errorf("%d requests with URLs that had ended", refused)
				}
				if refused > 13*10 {
					t.Errorf("%d refusals", refused)
				}
			})
		})
	}
}

// TestTargetFails checks that a content server which fails is asked for again, and that https is
// not left.
func TestTargetFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, cdn := newRegistry("reg.test"), newRegistry("cdn.test")
		blob := randomBytes(200_000)
		d := cdn.add(blob)
		s := signer{to: cdn, life: time.Hour, refuse: 403}
		g.fault, cdn.auth = s.redirect, s.check(t)
		broken := []func(http.ResponseWriter, *http.Request){answer(500, ""), cut(blob, 1000),
			answer(403, ""), answer(200, "<p>", "Content-Type", "text/html")}
		cdn.fault = func(k int, w http.ResponseWriter, r *http.Request) bool {
			if k < len(broken) {
				broken[k](w, r)
			}
			return k < len(broken)
		}
		defer net.serve("reg.test", g)()
		defer net.serve("cdn.test", cdn)()
		c := net.client(Config{})
		defer c.Close()
		p := make([]byte, 100_000)
		if err := mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(t.Context(), p,
			10); err != nil || !bytes.Equal(p, blob[10:100_010]) {
			t.Error(err)
		}
		if a, b := len(g.requests("")), len(cdn.requests("")); a != 5 || b != 5 {
			t.Errorf("%d and %d requests, want 5 and 5", a, b)
		}
	})
}

// TestRedirectFromTLS: https is left, without credentials, for what is compared with a digest, and
// for nothing else.
func TestRedirectFromTLS(t *testing.T) {
	blob := randomBytes(100_000)
	plain := newRegistry("plain")
	d := plain.add(blob)
	elsewhere := newServer(t, plain)
	secure := newRegistry("secure")
	secure.auth = func(r *http.Request) (string, int) {
		if _, password, _ := r.BasicAuth(); password != "secret" {
			return `Basic realm="r"`, http.StatusUnauthorized
		}
		return "", 0
	}
	secure.handle = map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+elsewhere+r.URL.Path, http.StatusTemporaryRedirect)
	}}
	srv := httptest.NewTLSServer(secure)
	defer srv.Close()
	host := srv.Listener.Addr().String()
	c, err := New(Config{
		ConfigPath: hostsToml(t, host, "[host.\"https://"+host+"\"]\nskip_verify = true\n"+
			"[host.\"https://"+host+"\".header]\nx-secret = [\"header\"]\n"),
		Credentials: func(context.Context, string, string) ([]creds.Credential, error) {
			return []creds.Credential{{User: "u", Secret: "secret"}}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	i := mustImage(t, c, host+"/a/b:1")
	p := make([]byte, 1000)
	if err := i.Blob(d).ReadAt(ctx, p, 5000); err != nil || !bytes.Equal(p, blob[5000:6000]) {
		t.Errorf("a range of a blob: %v", err)
	}
	if b, err := i.FetchBlob(ctx, d, 1<<20); err != nil || !bytes.Equal(b, blob) {
		t.Errorf("a blob: %v", err)
	}
	for _, h := range plain.headers() {
		if h.Get("Authorization") != "" || h.Get("X-Secret") != "" {
			t.Errorf("secrets were sent in the clear: %v", h)
		}
	}
	// A tag is not proved by anything. The error comes at once.
	plain.manifests["1"] = []byte("{}")
	if _, err := i.Resolve(ctx); err == nil || !strings.Contains(err.Error(), "redirect from https") {
		t.Errorf("a tag: %v", err)
	}
}

// TestRedirectedLogin reads where the registry redirects all requests to another, which asks for a
// login: under the same name it gets its own, once, elsewhere nobody's.
func TestRedirectedLogin(t *testing.T) {
	up := creds.Credential{User: "up", Secret: "secret"}
	for _, tc := range []struct {
		name  string
		at    string // the other registry
		basic bool
		user  creds.Credential // at the other registry
		err   error
	}{
		{"token", "reg.test:81", false, up, nil},
		{"anonymous token", "reg.test:81", false, creds.Credential{}, nil},
		{"basic", "reg.test:81", true, up, nil},
		{"basic, without a login", "reg.test:81", true, creds.Credential{}, ErrUnauthorized},
		{"elsewhere, anonymous token", "up.test", false, creds.Credential{}, nil},
		{"elsewhere, token", "up.test", false, up, ErrUnauthorized},
		{"elsewhere, basic", "up.test", true, up, ErrUnauthorized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				first, g := newRegistry("reg.test"), newRegistry(tc.at)
				tokens := newTokenServer(time.Hour, true)
				blob := randomBytes(10_000)
				d := g.add(blob)
				g.manifests["1"] = []byte(`{"schemaVersion":2,"layers":[]}`)
				first.on("/", func(w http.ResponseWriter, r *http.Request) {
					if u, _, _ := r.BasicAuth(); u != "first" {
						w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
						w.WriteHeader(http.StatusUnauthorized)
						return
					}
					http.Redirect(w, r, "http://"+tc.at+r.URL.Path, http.StatusTemporaryRedirect)
				})
				tokens.user, tokens.password = tc.user.User, tc.user.Secret
				g.auth = tokens.check
				if tc.basic {
					g.auth = func(r *http.Request) (string, int) {
						if u, p, _ := r.BasicAuth(); (creds.Credential{User: u, Secret: p}) == up {
							return "", 0
						}
						return `Basic realm="r"`, http.StatusUnauthorized
					}
				}
				defer net.serve("reg.test", first)()
				defer net.serve(tc.at, g)()
				defer net.serve("auth.test", tokens)()
				users := map[string]creds.Credential{
					"reg.test": {User: "first", Secret: "other"}, tc.at: tc.user,
				}
				c := net.client(Config{
					Credentials: func(_ context.Context, at, _ string) ([]creds.Credential, error) {
						return []creds.Credential{users[at]}, nil
					},
				})
				defer c.Close()
				i := mustImage(t, c, "reg.test/a/b:1")
				if _, err := i.Resolve(t.Context()); !errors.Is(err, tc.err) {
					t.Fatalf("resolve: %v", err)
				}
				for _, h := range g.headers() {
					if h.Get("Authorization") == "Basic Zmlyc3Q6b3RoZXI=" {
						t.Error("the first registry's login was sent to the other")
					}
					if tc.at == "up.test" && strings.HasPrefix(h.Get("Authorization"), "Basic") {
						t.Error("a login was sent elsewhere")
					}
				}
				if tc.err != nil {
					return
				}
				for range 3 {
					p := make([]byte, 5000)
					if err := i.Blob(d).ReadAt(t.Context(), p, 10); err != nil ||
						!bytes.Equal(p, blob[10:5010]) {
						t.Fatalf("read: %v", err)
					}
				}
				if a, b := len(first.requests("")), len(g.requests("")); a != 3 || b != 6 {
					t.Errorf("%d and %d requests, want 3 and 6", a, b)
				}
			})
		})
	}
}
