package remote

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/remote/creds"
)

// readers reads the blob by n readers at once, and returns their errors. Wrong bytes are the
// test's.
func readers(t *testing.T, n int, b *Blob, blob []byte, limit time.Duration) []error {
	t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for k := range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			p := make([]byte, 10_000)
			off := int64(k*7919) % int64(len(blob)-len(p))
			if errs[k] = b.ReadAt(ctx, p, off); errs[k] == nil &&
				!bytes.Equal(p, blob[off:off+int64(len(p))]) {
				t.Errorf("reader %d: wrong bytes", k)
			}
		})
	}
	wg.Wait()
	return errs
}

// TestOutage takes a registry away for three minutes, in each of the ways in which that happens.
// Patient readers wait and go on soon after; those whose time is up get an error, and none is kept.
func TestOutage(t *testing.T) {
	const outage = 3 * time.Minute
	blob := randomBytes(blobSize)
	all := func(f func(http.ResponseWriter, *http.Request)) fault { return first(1e9, f) }
	for _, tc := range []struct {
		name   string
		fault  fault         // nil: nobody listens
		within time.Duration // after the outage, all have read
	}{
		{"nobody listens", nil, 2 * time.Second},
		{"resets", all(hangUp), 2 * time.Second},
		{"truncates", all(cut(blob, 0)), 2 * time.Second},
		{"truncates after some bytes", all(cut(blob, 10)), 2 * time.Second},
		{"silent", all(hang(blob, 0)), 16 * time.Second},
		{"401", all(answer(401, "")), 2 * time.Second},
		{"403", all(answer(403, "")), 2 * time.Second},
		{"404", all(answer(404, "")), 2 * time.Second},
		{"429", all(answer(429, "")), 2 * time.Second},
		{"429 with a time", all(answer(429, "", "Retry-After", "30")), 4 * time.Second},
		{"500", all(answer(500, "")), 2 * time.Second},
		{"503", all(answer(503, "")), 2 * time.Second},
		{"page", all(answer(200, "<html>", "Content-Type", "text/html")), 2 * time.Second},
		{"wrong range", all(answer(206, "0123456789", "Content-Range", "bytes 1-10/99")),
			2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				d := g.add(blob)
				stop := net.serve("reg.test", g)
				defer func() { stop() }()
				c := net.client(Config{})
				defer c.Close()
				b := mustImage(t, c, "reg.test/a/b:1").Blob(d).WithPatience(5 * time.Minute)
				fail := func(f fault) {
					if tc.fault == nil {
						stop()
						if f == nil {
							stop = net.serve("reg.test", g)
						} else {
							stop = func() {}
						}
						return
					}
					g.mu.Lock()
					defer g.mu.Unlock()
					g.fault = f
				}
				fail(all(answer(500, "")))
				if tc.fault != nil {
					fail(tc.fault)
				}
				start := time.Now()
				time.AfterFunc(outage, func() { fail(nil) })
				var wg sync.WaitGroup
				wg.Go(func() { // some give up
					for _, err := range readers(t, 3, b, blob, time.Minute) {
						if !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("read of a minute: %v", err)
						}
					}
				})
				for k, err := range readers(t, 20, b, blob, 5*time.Minute) {
					if err != nil {
						t.Errorf("reader %d: %v", k, err)
					}
				}
				wg.Wait()
				if late := time.Since(start) - outage; late < 0 || late > tc.within {
					t.Errorf("all have read %v after the outage, want %v", late, tc.within)
				}
				// 20 readers, for 3 minutes, with up to 2 s between attempts.
				if n := len(g.requests("")); n > 23*(int(outage/time.Second)+10) {
					t.Errorf("%d requests", n)
				}
				again := time.Now()
				if err := readers(t, 1, b, blob, time.Minute)[0]; err != nil ||
					time.Since(again) > 0 {
					t.Errorf("read after the outage: %v, %v", time.Since(again), err)
				}
			})
		})
	}
}

// TestPatienceEnds: refused for longer than it was told to wait, a blob is an error at once, until
// it is there again.
func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		blob := randomBytes(blobSize)
		d := g.add(blob)
		g.fault = first(1e9, answer(404, ""))
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		i := mustImage(t, c, "reg.test/a/b:1")
		b := i.Blob(d).WithPatience(time.Minute)
		read := func(b *Blob, want error, least, most time.Duration) {
			t.Helper()
			start := time.Now()
			if err := readers(t, 1, b, blob, time.Hour)[0]; !errors.Is(err, want) {
				t.Errorf("error %v, want %v", err, want)
			}
			if took := time.Since(start); took < least || took > most {
				t.Errorf("took %v, want %v to %v", took, least, most)
			}
		}
		read(i.Blob(d), ErrNotFound, 0, 0) // who has no patience
		read(b, ErrNotFound, time.Minute, time.Minute+3*time.Second)
		time.Sleep(10 * time.Second)
		read(b, ErrNotFound, 0, 0)
		g.mu.Lock()
		g.fault = nil
		g.mu.Unlock()
		read(b, nil, 0, 0)
		g.mu.Lock()
		g.fault = first(1e9, answer(404, ""))
		g.mu.Unlock()
		read(b, ErrNotFound, time.Minute, time.Minute+3*time.Second) // a new outage
	})
}

// TestTrickle: a body that brings next to nothing is given up, a slow one is not.
func TestTrickle(t *testing.T) {
	blob := randomBytes(blobSize)
	trickle := func(n int, every time.Duration) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			from, to := rangeOf(r, len(blob))
			head(w, from, to, len(blob))
			for b := blob[from : to+1]; len(b) > 0; b = b[min(n, len(b)):] {
				if _, err := w.Write(b[:min(n, len(b))]); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(every):
				case <-r.Context().Done():
					return
				}
			}
		}
	}
	for _, tc := range []struct {
		name     string
		fault    func(http.ResponseWriter, *http.Request)
		requests int
		within   time.Duration
	}{
		{"a byte a second", trickle(1, time.Second), 2, 16 * time.Second},
		{"2000 bytes a second", trickle(2000, time.Second), 1, 101 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				d := g.add(blob)
				g.fault = first(1, tc.fault)
				defer net.serve("reg.test", g)()
				c := net.client(Config{})
				defer c.Close()
				start := time.Now()
				p := make([]byte, 200_000)
				if err := mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(t.Context(), p,
					1000); err != nil || !bytes.Equal(p, blob[1000:201_000]) {
					t.Errorf("read: %v", err)
				}
				if took := time.Since(start); took > tc.within {
					t.Errorf("took %v, want %v", took, tc.within)
				}
				if n := len(g.requests("/blobs/")); n != tc.requests {
					t.Errorf("%d requests, want %d", n, tc.requests)
				}
			})
		})
	}
}

// TestNewMirror: who waits for a registry that is down goes on at a mirror that is configured
// meanwhile.
func TestNewMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		m := newRegistry("m1.test")
		blob := randomBytes(blobSize)
		d := m.add(blob)
		defer net.serve("m1.test", m)()
		path := hostsToml(t, "reg.test", "server = \"http://reg.test\"\n")
		c := net.client(Config{ConfigPath: path})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		time.AfterFunc(time.Minute, func() {
			text := "server = \"http://reg.test\"\n[host.\"http://m1.test\"]\n"
			if err := os.WriteFile(filepath.Join(path, "reg.test", "hosts.toml"), []byte(text),
				0o644); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		if err := readers(t, 1, b, blob, 5*time.Minute)[0]; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Minute+hostsCheckEvery+3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestPlaces reads a blob that several images have, of which some lack it, refuse it, are down, or
// break off in the middle.
func TestPlaces(t *testing.T) {
	blob := randomBytes(200_000)
	all := func(f func(http.ResponseWriter, *http.Request)) fault { return first(1e9, f) }
	for _, tc := range []struct {
		name  string
		one   fault
		down  bool
		asked int // requests to the second registry
	}{
		{"all well", nil, false, 0},
		{"404", all(answer(404, "")), false, 1},
		{"403", all(answer(403, "")), false, 1},
		{"401", all(answer(401, "")), false, 1},
		{"down", nil, true, 1},
		{"500", all(answer(500, "")), false, 1},
		{"breaks off", all(cut(blob, 100_000)), false, 1},
		{"breaks off, then 404", func(k int, w http.ResponseWriter, r *http.Request) bool {
			if k == 0 {
				cut(blob, 100_000)(w, r)
			} else {
				answer(404, "")(w, r)
			}
			return true
		}, false, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				one, two := newRegistry("one.test"), newRegistry("two.test")
				one.fault = tc.one
				d := one.add(blob)
				two.add(blob)
				if !tc.down {
					defer net.serve("one.test", one)()
				}
				defer net.serve("two.test", two)()
				c := net.client(Config{})
				defer c.Close()
				b := mustImage(t, c,
					"one.test/a/b:1").Blob(d).AlsoFrom(mustImage(t, c,
					"one.test/a/b:2").Blob(d)).AlsoFrom(mustImage(t, c, "two.test/c:1").Blob(d))
				p := make([]byte, 150_000)
				start := time.Now()
				if err := b.ReadAt(t.Context(), p, 1000); err != nil ||
					!bytes.Equal(p, blob[1000:151_000]) {
					t.Errorf("read: %v", err)
				}
				if took := time.Since(start); took > 0 {
					t.Errorf("took %v", took)
				}
				if n := len(two.requests("/v2/c/blobs/")); n != tc.asked {
					t.Errorf("the second registry was asked %d times, want %d", n, tc.asked)
				}
				if n := len(one.requests("/blobs/")); n > 1 {
					t.Errorf("the first registry was asked %d times", n)
				}
			})
		})
	}
}

// TestSuspect: bytes that turn out to be wrong come from somebody else next time, past caches, and
// not from where a redirect led.
func TestSuspect(t *testing.T) {
	blob := randomBytes(blobSize)
	wrong := append([]byte(nil), blob...)
	wrong[5000] ^= 1
	read := func(t *testing.T, b *Blob) bool {
		p := make([]byte, 10_000)
		if err := b.ReadAt(t.Context(), p, 1000); err != nil {
			t.Fatal(err)
		}
		return bytes.Equal(p, blob[1000:11_000])
	}
	t.Run("mirror", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork(t)
			m, up := newRegistry("m1.test"), newRegistry("up.test")
			d := up.add(blob)
			m.blobs[d.Digest] = wrong
			defer net.serve("m1.test", m)()
			defer net.serve("up.test", up)()
			c := net.client(Config{ConfigPath: hostsToml(t, "reg.test",
				"server = \"http://up.test\"\n[host.\"http://m1.test\"]\n")})
			defer c.Close()
			b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
			if read(t, b) {
				t.Fatal("the mirror is right")
			}
			b.Suspect(100_000, 10) // other bytes, which nobody has sent
			if read(t, b) {
				t.Error("who did not send them is blamed")
			}
			b.Suspect(1000, 10_000)
			for range 3 {
				if !read(t, b) {
					t.Error("wrong bytes again")
				}
			}
			m.blobs[d.Digest] = blob
			time.Sleep(suspectFor)
			n := len(m.requests(""))
			if !read(t, b) || len(m.requests("")) != n+1 {
				t.Error("the mirror is not asked any more")
			}
		})
	})
	t.Run("cache", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork(t)
			g := newRegistry("reg.test")
			d := g.add(blob)
			g.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Cache-Control") == "no-cache" {
					return false
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
				return true
			}
			defer net.serve("reg.test", g)()
			c := net.client(Config{})
			defer c.Close()
			i := mustImage(t, c, "reg.test/a/b:1")
			b := i.Blob(d)
			if read(t, b) {
				t.Fatal("the cache is right")
			}
			b.Suspect(0, blobSize)
			if !read(t, b) {
				t.Error("the cache is asked again")
			}
			// A whole blob is checked by itself.
			if got, err := i.FetchBlob(t.Context(), d, blobSize); err != nil ||
				!bytes.Equal(got, blob) {
				t.Errorf("whole blob: %v", err)
			}
		})
	})
	t.Run("redirect", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork(t)
			g, bad, good := newRegistry("reg.test"), newRegistry("bad.test"), newRegistry("good.test")
			d := good.add(blob)
			bad.blobs[d.Digest] = wrong
			g.fault = func(k int, w http.ResponseWriter, r *http.Request) bool {
				to := "http://bad.test"
				if k > 0 {
					to = "http://good.test"
				}
				http.Redirect(w, r, to+r.URL.Path, http.StatusTemporaryRedirect)
				return true
			}
			for _, r := range []*fakeRegistry{g, bad, good} {
				defer net.serve(r.name, r)()
			}
			c := net.client(Config{})
			defer c.Close()
			b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
			for range 2 {
				if read(t, b) {
					t.Fatal("the first target is right")
				}
			}
			b.Suspect(1000, 10)
			if !read(t, b) {
				t.Error("the same target is asked again")
			}
		})
	})
	t.Run("two of three", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork(t)
			gs := []*fakeRegistry{newRegistry("m1.test"), newRegistry("m2.test"),
				newRegistry("up.test")}
			d := gs[2].add(blob)
			gs[0].blobs[d.Digest], gs[1].blobs[d.Digest] = wrong, wrong
			for _, g := range gs {
				defer net.serve(g.name, g)()
			}
			c := net.client(Config{ConfigPath: hostsToml(t, "reg.test", twoMirrors)})
			defer c.Close()
			b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
			for k := range 3 {
				if right := read(t, b); right != (k == 2) {
					t.Errorf("read %d is right: %v", k, right)
				}
				b.Suspect(1000, 10_000)
			}
		})
	})
}

// TestCredentials: of several credentials those count that the token server, and the registry,
// take; new ones as soon as there are any.
func TestCredentials(t *testing.T) {
	good, bad, other := creds.Credential{User: "u", Secret: "p"}, creds.Credential{User: "u",
		Secret: "old"}, creds.Credential{User: "v", Secret: "v"}
	for _, tc := range []struct {
		name string
		have []creds.Credential
		ok   bool
	}{
		{"good", []creds.Credential{good}, true},
		{"good last", []creds.Credential{bad, other, good}, true},
		{"token without access first", []creds.Credential{other, good}, true},
		{"good between", []creds.Credential{other, good, bad}, true},
		{"bad", []creds.Credential{bad, other}, false},
		{"none", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				blob := randomBytes(1000)
				d := g.add(blob)
				g.auth = func(r *http.Request) (string, int) {
					if r.Header.Get("Authorization") == "Bearer for-u" {
						return "", 0
					}
					return `Bearer realm="http://auth.test/token",service="reg.test",scope="repository:a/b:pull"`, 401
				}
				var tokens atomic.Int64
				defer net.serve("reg.test", g)()
				defer net.serve("auth.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					tokens.Add(1)
					_ = r.ParseForm()
					u, p, _ := r.BasicAuth()
					if r.Method == http.MethodPost {
						u, p = r.Form.Get("username"), r.Form.Get("password")
					}
					switch (creds.Credential{User: u, Secret: p}) {
					case bad:
						w.WriteHeader(http.StatusUnauthorized)
					default: // nobody gets a token, too
						_, _ = w.Write([]byte(`{"access_token":"for-` + u + `","token":"for-` + u +
							`"}`))
					}
				}))()
				var mu sync.Mutex
				have := tc.have
				c := net.client(Config{Credentials: func(context.Context, string, string) ([]creds.Credential, error) {
					mu.Lock()
					defer mu.Unlock()
					return have, nil
				}})
				defer c.Close()
				b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
				for range 20 {
					err := b.ReadAt(t.Context(), make([]byte, 10), 0)
					if tc.ok != (err == nil) || !tc.ok && !errors.Is(err, ErrUnauthorized) {
						t.Fatalf("read: %v", err)
					}
				}
				if n := tokens.Load(); n > 6 {
					t.Errorf("%d token requests", n)
				}
				if tc.ok {
					return
				}
				// Refused for a while, then there are others: a patient reader gets on soon.
				time.AfterFunc(time.Minute, func() {
					mu.Lock()
					defer mu.Unlock()
					have = []creds.Credential{good}
				})
				start := time.Now()
				if err := b.WithPatience(5*time.Minute).ReadAt(t.Context(), make([]byte, 10),
					0); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took < time.Minute ||
					took > time.Minute+3*time.Second {
					t.Errorf("took %v", took)
				}
				if n := tokens.Load(); n > 50 {
					t.Errorf("%d token requests in a minute", n)
				}
			})
		})
	}
}

// TestPublicWithOldLogin: credentials that have expired do not make a public image unreadable.
func TestPublicWithOldLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		d := g.add([]byte("public"))
		g.auth = func(r *http.Request) (string, int) {
			if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer anonymous") {
				return "", 0
			}
			return `Bearer realm="http://auth.test/token",service="reg.test"`, 401
		}
		g.handle["/v2/a/private/"] = answer(http.StatusUnauthorized, "")
		defer net.serve("reg.test", g)()
		defer net.serve("auth.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, _, ok := r.BasicAuth(); ok || r.Method == http.MethodPost {
				http.Error(w, "password has expired", http.StatusUnauthorized)
				return
			}
			_, _ = w.Write([]byte(`{"token":"anonymous"}`))
		}))()
		c := net.client(Config{Credentials: func(context.Context, string, string) ([]creds.Credential, error) {
			return []creds.Credential{{User: "u", Secret: "expired"}}, nil
		}})
		defer c.Close()
		if err := mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(t.Context(), make([]byte, 6),
			0); err != nil {
			t.Error(err)
		}
		// Of one that is not public the error says what is wrong.
		err := mustImage(t, c, "reg.test/a/private:1").Blob(d).ReadAt(t.Context(), make([]byte, 6),
			0)
		if !errors.Is(err, ErrUnauthorized) ||
			!strings.Contains(err.Error(), "password has expired") {
			t.Errorf("private image: %v", err)
		}
	})
}
