package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/remote/creds"
)

// tokenServer gives out tokens that end, to anybody or to one user.
type tokenServer struct {
	mu             sync.Mutex
	life           time.Duration
	say            bool // tell how long a token lives
	user, password string
	get            bool // knows only GET
	issued         int
	asked          []string // "METHOD query or form"
	valid          map[string]time.Time
	down           bool
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.Form.Encode())
	user, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		user, password = r.Form.Get("username"), r.Form.Get("password")+r.Form.Get("refresh_token")
	}
	switch {
	case s.down:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case s.get && r.Method != http.MethodGet:
		w.WriteHeader(http.StatusNotFound)
		return
	case s.user+s.password != "" && (user != s.user || password != s.password):
		http.Error(w, "no such user", http.StatusUnauthorized)
		return
	}
	s.issued++
	token := fmt.Sprintf("token-%d", s.issued)
	s.valid[token] = time.Now().Add(s.life)
	out := map[string]any{"access_token": token, "token": token}
	if s.say {
		out["expires_in"] = int(s.life / time.Second)
	}
	_ = json.NewEncoder(w).Encode(out)
}

// check is a registry's auth function.
func (s *tokenServer) check(r *http.Request) (string, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if time.Now().Before(s.valid[token]) {
		return "", 0
	}
	return `Bearer realm="http://auth.test/token",service="reg.test",scope="repository:a/b:pull"`, http.StatusUnauthorized
}

func newTokenServer(life time.Duration, say bool) *tokenServer {
	return &tokenServer{life: life, say: say, valid: map[string]time.Time{}}
}

// TestFirstRequests checks that ten reads at once cost one challenge and one token, however the
// server is asked.
func TestFirstRequests(t *testing.T) {
	type cred = creds.Credential
	for _, tc := range []struct {
		name  string
		have  []cred
		want  cred
		get   bool
		asked []string // prefixes
	}{
		{"anonymous", nil, cred{}, false,
			[]string{"GET scope=repository%3Aa%2Fb%3Apull&service=reg.test"}},
		{"user, POST", []cred{{User: "u", Secret: "p"}}, cred{User: "u", Secret: "p"}, false, []string{"POST client_id=mica&grant_type=password&password=p&scope=repository%3Aa%2Fb%3Apull"}},
		{"user, only GET", []cred{{User: "u", Secret: "p"}}, cred{User: "u", Secret: "p"}, true,
			[]string{"POST ", "GET "}},
		{"identity token", []cred{{Secret: "long"}}, cred{Secret: "long"}, false,
			[]string{"POST client_id=mica&grant_type=refresh_token&refresh_token=long"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g, s := newRegistry("reg.test"), newTokenServer(time.Hour, true)
				s.user, s.password, s.get = tc.want.User, tc.want.Secret, tc.get
				blobs := [][]byte{randomBytes(10_000), randomBytes(20_000)}
				g.auth = s.check
				defer net.serve("reg.test", g)()
				defer net.serve("auth.test", s)()
				c := net.client(Config{Credentials: func(context.Context, string, string) ([]creds.Credential, error) {
					return tc.have, nil
				}})
				defer c.Close()
				var wg sync.WaitGroup
				for k := range 10 {
					b := blobs[k%2]
					d := g.add(b)
					// other images of the repository share the token
					i := mustImage(t, c, fmt.Sprintf("reg.test/a/b:%d", k))
					wg.Go(func() {
						p := make([]byte, 5000)
						if err := i.Blob(d).ReadAt(t.Context(), p, 10); err != nil ||
							!bytes.Equal(p, b[10:5010]) {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if l := g.requests(""); len(l) != 11 {
					t.Errorf("%d requests to the registry, want 11: %q", len(l), l)
				}
				if len(s.asked) != len(tc.asked) || s.issued != 1 {
					t.Fatalf("token server was asked %q", s.asked)
				}
				for k, want := range tc.asked {
					if !strings.HasPrefix(s.asked[k], want) {
						t.Errorf("token server was asked %q, want %q", s.asked[k], want)
					}
				}
				if n := c.Stats().TokenRequests; n != uint64(len(tc.asked)) {
					t.Errorf("%d token requests counted", n)
				}
			})
		})
	}
}

// TestTokenExpiry reads for an hour. A token whose end is known costs no refusal; the others cost
// one each.
func TestTokenExpiry(t *testing.T) {
	for _, say := range []bool{true, false} {
		t.Run(fmt.Sprintf("says %v", say), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g, s := newRegistry("reg.test"), newTokenServer(5*time.Minute, say)
				blob := randomBytes(1000)
				d := g.add(blob)
				g.auth = s.check
				defer net.serve("reg.test", g)()
				defer net.serve("auth.test", s)()
				c := net.client(Config{})
				defer c.Close()
				i := mustImage(t, c, "reg.test/a/b:1")
				const reads = 60
				for range reads {
					var wg sync.WaitGroup
					for range 2 {
						wg.Go(func() {
							p := make([]byte, 1000)
							if err := i.Blob(d).ReadAt(t.Context(), p, 0); err != nil ||
								!bytes.Equal(p, blob) {
								t.Error(err)
							}
						})
					}
					wg.Wait()
					time.Sleep(time.Minute)
				}
				refused := len(g.requests("")) - 2*reads
				if s.issued < 12 || s.issued > 15 {
					t.Errorf("%d tokens in an hour", s.issued)
				}
				if say && refused != 1 {
					t.Errorf("%d requests were refused, want the first only", refused)
				}
				if !say && refused > 2*s.issued {
					t.Errorf("%d requests were refused with %d tokens", refused, s.issued)
				}
			})
		})
	}
}

// TestRefused checks that wrong credentials are an error at once, that hammering costs no tokens,
// and that new ones work soon.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, s := newRegistry("reg.test"), newTokenServer(time.Hour, true)
		s.user, s.password = "u", "right"
		d := g.add(randomBytes(1000))
		g.auth = s.check
		defer net.serve("reg.test", g)()
		defer net.serve("auth.test", s)()
		password := "wrong"
		c := net.client(Config{Credentials: func(context.Context, string, string) ([]creds.Credential, error) {
			return []creds.Credential{{User: "u", Secret: password}}, nil
		}})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		for range 20 {
			if err := b.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err,
				ErrUnauthorized) || !strings.Contains(err.Error(), "no such user") {
				t.Fatalf("error %v", err)
			}
		}
		// one to the registry, POST and GET to the token server, and one anonymous
		if n := c.Stats().Requests; n > 4 {
			t.Errorf("%d requests for 20 refused reads", n)
		}
		password = "right"
		time.Sleep(lookEvery)
		if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
			t.Error(err)
		}
	})
}

// TestForbidden checks that a token one thing refuses, just after it was issued, still serves the
// others and is not renewed each time.
func TestForbidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, s := newRegistry("reg.test"), newTokenServer(time.Hour, true)
		blob := randomBytes(1000)
		d := g.add(blob)
		g.auth = s.check
		g.handle["/v2/a/b/manifests/secret"] = answer(http.StatusForbidden, "")
		defer net.serve("reg.test", g)()
		defer net.serve("auth.test", s)()
		c := net.client(Config{})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:secret")
		for range 10 {
			if _, err := i.Resolve(t.Context()); !errors.Is(err, ErrUnauthorized) {
				t.Fatalf("error %v", err)
			}
			p := make([]byte, 1000)
			if err := i.Blob(d).ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, blob) {
				t.Fatal(err)
			}
		}
		if s.issued != 1 {
			t.Errorf("%d tokens", s.issued)
		}
	})
}

// TestTokenServerDown checks that reads survive a token server that is away for a while, and that
// they do not queue for it.
func TestTokenServerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, s := newRegistry("reg.test"), newTokenServer(time.Hour, true)
		s.down = true
		blob := randomBytes(1000)
		d := g.add(blob)
		g.auth = s.check
		defer net.serve("reg.test", g)()
		defer net.serve("auth.test", s)()
		c := net.client(Config{})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:1")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				p := make([]byte, 1000)
				if err := i.Blob(d).ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, blob) {
					t.Error(err)
				}
			})
		}
		time.Sleep(30 * time.Second)
		s.mu.Lock()
		s.down = false
		s.mu.Unlock()
		start := time.Now()
		wg.Wait()
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("reads went on %v after the token server came back", took)
		}
		if n := len(s.asked); n > 150 {
			t.Errorf("%d token requests in 30 s", n)
		}
	})
}

// TestBasic checks basic authentication, renewed when the password changes and the host says 403.
func TestBasic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		blob := randomBytes(1000)
		d := g.add(blob)
		var mu sync.Mutex
		password := "one"
		g.auth = func(r *http.Request) (string, int) {
			mu.Lock()
			defer mu.Unlock()
			switch _, p, ok := r.BasicAuth(); {
			case !ok:
				return `Basic realm="x"`, 401
			case p != password:
				return "", 403
			}
			return "", 0
		}
		defer net.serve("reg.test", g)()
		c := net.client(Config{Credentials: func(_ context.Context, host, repository string) ([]creds.Credential, error) {
			if host != "reg.test" || repository != "reg.test/a/b" {
				t.Errorf("credentials asked for %q at %q", repository, host)
			}
			return []creds.Credential{{User: "u", Secret: password}}, nil
		}})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		for _, p := range []string{"one", "two"} {
			password = p
			got := make([]byte, 1000)
			if err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, blob) {
				t.Fatal(err)
			}
		}
		if l := g.requests(""); len(l) != 4 {
			t.Errorf("%d requests, want 4", len(l))
		}
	})
}

// TestLeaderCancelled checks that the others get a token when the read that was fetching it is
// given up.
func TestLeaderCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, s := newRegistry("reg.test"), newTokenServer(time.Hour, true)
		blob := randomBytes(1000)
		d := g.add(blob)
		g.auth = s.check
		n := 0
		defer net.serve("reg.test", g)()
		defer net.serve("auth.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n++; n == 1 {
				<-r.Context().Done()
				return
			}
			s.ServeHTTP(w, r)
		}))()
		c := net.client(Config{})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:1")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := i.Blob(d).ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err,
				context.Canceled) {
				t.Errorf("cancelled read: %v", err)
			}
		})
		synctest.Wait()
		for range 5 {
			wg.Go(func() {
				p := make([]byte, 1000)
				if err := i.Blob(d).ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, blob) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if n != 2 {
			t.Errorf("%d token requests, want 2", n)
		}
	})
}

// TestHeaderAtTokenServer: a login that stands in hosts.toml alone, as a header, gets tokens.
func TestHeaderAtTokenServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, tokens := newRegistry("reg.test"), newTokenServer(time.Hour, true)
		d := g.add([]byte("blob"))
		tokens.user, tokens.password = "u", "p"
		g.auth = tokens.check
		defer net.serve("reg.test", g)()
		defer net.serve("auth.test", tokens)()
		c := net.client(Config{ConfigPath: hostsToml(t, "reg.test",
			"server = \"http://reg.test\"\n[header]\nauthorization = \"Basic dTpw\"\n")})
		defer c.Close()
		if b, err := mustImage(t, c, "reg.test/a/b:1").FetchBlob(t.Context(), d, 100); err != nil ||
			string(b) != "blob" {
			t.Errorf("%q, %v", b, err)
		}
	})
}
