package registry_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// answer is what a client gets to see.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
	took   time.Duration
}

func get(t *testing.T, url, ranges string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(fixture.Context(t), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", ranges)
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err, took: time.Since(start)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err, time.Since(start)}
}

// Every fault looks to a client as it says, through both registries; without
// one, ranges are what was pushed.
func TestFaults(t *testing.T) {
	content := make([]byte, 300_000)
	if _, err := rand.Read(content); err != nil { // does not shrink
		t.Fatal(err)
	}
	tar, err := images.Tar(images.File("file", 0o644, content))
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.FromTars([]string{"/none"}, tar)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	compressed, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(compressed)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*registry.Registry{"distribution": fixture.Registry(t),
		"referrers": fixture.Referrers(t)} {
		fixture.Push(t, r, "image", img)
		url := fmt.Sprintf("http://%s/v2/image/blobs/%s", r.Host(), digest)
		for _, tt := range []struct {
			name  string
			fault registry.Fault
			want  func(a answer) bool
		}{
			{"none", registry.Fault{}, func(a answer) bool {
				return a.status == 206 && a.err == nil && bytes.Equal(a.body, blob[100:1100])
			}},
			{"delay", registry.Fault{Delay: 50 * time.Millisecond}, func(a answer) bool {
				return a.status == 206 && a.took >= 50*time.Millisecond &&
					bytes.Equal(a.body, blob[100:1100])
			}},
			{"429", registry.Fault{Status: 429, RetryAfter: "7"}, func(a answer) bool {
				return a.status == 429 && a.header.Get("Retry-After") == "7"
			}},
			{"page", registry.Fault{Page: true}, func(a answer) bool {
				return a.status == 200 &&
					strings.HasPrefix(a.header.Get("Content-Type"), "text/html") && a.err == nil
			}},
			{"whole", registry.Fault{Whole: true}, func(a answer) bool {
				return a.status == 200 && bytes.Equal(a.body, blob)
			}},
			{"wrong range", registry.Fault{WrongRange: true}, func(a answer) bool {
				return a.status == 206 &&
					strings.HasPrefix(a.header.Get("Content-Range"), "bytes 1-") &&
					!bytes.Equal(a.body, blob[100:1100])
			}},
			{"truncate", registry.Fault{Truncate: true, Cut: 10}, func(a answer) bool {
				return a.status == 206 && errors.Is(a.err, io.ErrUnexpectedEOF) &&
					bytes.Equal(a.body, blob[100:110])
			}},
			{"flip", registry.Fault{Flip: true}, func(a answer) bool {
				return a.status == 206 && a.err == nil && len(a.body) == 1000 &&
					!bytes.Equal(a.body, blob[100:1100])
			}},
			{"rate", registry.Fault{Rate: 10_000}, func(a answer) bool {
				return a.status == 206 && a.took >= 100*time.Millisecond &&
					bytes.Equal(a.body, blob[100:1100])
			}},
			{"reset", registry.Fault{Reset: true, Cut: 10}, func(a answer) bool {
				return errors.Is(a.err, syscall.ECONNRESET) || errors.Is(a.err, io.ErrUnexpectedEOF)
			}},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				r.SetRule(func(*http.Request, int64) registry.Fault { return tt.fault })
				defer r.SetRule(nil)
				r.ResetTraffic()
				if a := get(t, url, "bytes=100-1099"); !tt.want(a) {
					t.Errorf("status %d, header %v, %d bytes, %v", a.status, a.header, len(a.body),
						a.err)
				}
				fixture.Eventually(t, 5*time.Second, func() string { // it is written down when it has ended
					if n := len(r.Traffic().Requests); n != 1 {
						return fmt.Sprintf("%d requests written down, want 1", n)
					}
					return ""
				})
			})
		}
	}
}

// A front has faults of its own; its port can be closed and opened again.
func TestFront(t *testing.T) {
	r := fixture.Referrers(t)
	f, err := r.Front()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	status := func(r *registry.Registry) int { return get(t, "http://"+r.Host()+"/v2/", "").status }
	f.SetRule(func(*http.Request, int64) registry.Fault { return registry.Fault{Status: 500} })
	if a, b := status(r), status(f); a != 200 || b != 500 {
		t.Errorf("status %d and %d", a, b)
	}
	f.SetRule(nil)
	if err := f.Down(); err != nil {
		t.Fatal(err)
	}
	if a := get(t, "http://"+f.Host()+"/v2/", ""); !errors.Is(a.err, syscall.ECONNREFUSED) {
		t.Errorf("while it is down: %+v", a)
	}
	if err := f.Up(); err != nil {
		t.Fatal(err)
	}
	if a := status(f); a != 200 {
		t.Errorf("up again: status %d", a)
	}
}

// A held request meets the fault of the time when it is let go.
func TestHold(t *testing.T) {
	r := fixture.Referrers(t)
	hold, met := make(chan struct{}), make(chan struct{}, 1)
	r.SetRule(func(*http.Request, int64) registry.Fault {
		met <- struct{}{}
		return registry.Fault{Hold: hold}
	})
	go func() {
		<-met
		r.SetRule(func(*http.Request, int64) registry.Fault { return registry.Fault{Status: 418} })
		close(hold)
	}()
	if a := get(t, "http://"+r.Host()+"/v2/", ""); a.status != 418 {
		t.Errorf("%+v", a)
	}
}

// A token is good until tokens expire.
func TestTokens(t *testing.T) {
	r := fixture.Referrers(t)
	r.ExpireTokens()
	ask := func(token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(fixture.Context(t), http.MethodGet,
			"http://"+r.Host()+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("WWW-Authenticate")
	}
	if status, challenge := ask("none"); status != 401 ||
		!strings.HasPrefix(challenge, `Bearer realm="http://`+r.Host()+`/token"`) {
		t.Errorf("%d %s", status, challenge)
	}
	if a := get(t, "http://"+r.Host()+"/token", ""); a.status != 200 ||
		!bytes.Contains(a.body, []byte(`"token-1"`)) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if status, _ := ask("token-1"); status != 200 {
		t.Errorf("with a token: %d", status)
	}
	r.ExpireTokens()
	if status, _ := ask("token-1"); status != 401 {
		t.Errorf("with an expired token: %d", status)
	}
}
