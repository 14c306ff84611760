package remote

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/remote/registry"
)

const blobSize = 1 << 20

// cut sends the head of a right answer and then only n bytes.
func cut(blob []byte, n int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		a, b := rangeOf(r, len(blob))
		head(w, a, b, len(blob))
		_, _ = w.Write(blob[a : a+min(n, b-a)])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func head(w http.ResponseWriter, a, b, size int) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", fmt.Sprint(b-a+1))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a, b, size))
	w.WriteHeader(http.StatusPartialContent)
}

// hang sends n bytes and then nothing until the client leaves.
func hang(blob []byte, n int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		a, b := rangeOf(r, len(blob))
		if n > 0 {
			head(w, a, b, len(blob))
			_, _ = w.Write(blob[a : a+n])
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// TestFaults reads a range while the registry misbehaves in one way for a while, and checks bytes,
// requests and time.
func TestFaults(t *testing.T) {
	blob := randomBytes(blobSize)
	const off, n = 300_000, 200_000
	zipped := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(blob[off : off+n])
		_ = z.Close()
	}
	partial := func(first, last, total int, body []byte) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, total))
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
		}
	}
	right := blob[off : off+n]
	// the bubble's clock starts at 2000
	date := time.Date(2000, 1, 1, 0, 0, 7, 0, time.UTC).Format(http.TimeFormat)
	for _, tc := range []struct {
		name     string
		fault    fault
		requests int           // in all
		min, max time.Duration // of virtual time
	}{
		{"none", nil, 1, 0, 0},
		{"ends early", first(1, cut(blob, 100_000)), 2, 0, 0},
		{"ends early each time", first(3, cut(blob, 60_000)), 4, 0, time.Second},
		{"ends at once", first(2, cut(blob, 0)), 3, 100 * time.Millisecond, time.Second},
		{"reset before the answer", first(3, hangUp), 4, 100 * time.Millisecond, 2 * time.Second},
		{"200 for a range", first(9, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(blob)
		}), 2, 0, 0},
		{"200 for a range, chunked", first(9, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			for b := blob; len(b) > 0; b = b[1<<16:] {
				_, _ = w.Write(b[:1<<16])
				_ = http.NewResponseController(w).Flush()
			}
		}), 2, 0, 0},
		{"200 with another size",
			first(1, answer(200, string(blob[1:]), "Content-Length",
				fmt.Sprint(blobSize-1))), 2, 0, time.Second},
		{"200 that ends before the range", first(1, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			_, _ = w.Write(blob[:off/2])
			panic(http.ErrAbortHandler)
		}), 2, 0, time.Second},
		{"wrong start", first(1, partial(off-1, off+n-2, blobSize, right)), 2, 0, time.Second},
		{"wrong total", first(1, partial(off, off+n-1, blobSize+1, right)), 2, 0, time.Second},
		{"more than sent", first(1, partial(off, off+n-1, blobSize, right[1:])), 2, 0, time.Second},
		{"no Content-Range", first(1, answer(206, string(right))), 2, 0, time.Second},
		{"several parts",
			first(1, answer(206, "--x--", "Content-Type",
				"multipart/byteranges; boundary=x")), 2, 0, time.Second},
		{"less than asked for", first(1, partial(off, off+n/2-1, blobSize, right[:n/2])), 2, 0, 0},
		{"HTML", first(2,
			answer(200, strings.Repeat("<p>", 1000), "Content-Type",
				"text/html; charset=utf-8")), 3, 0, time.Second},
		{"HTML of the right length",
			first(1, answer(206, string(right), "Content-Type", "text/html",
				"Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1,
					blobSize))), 2, 0, time.Second},
		{"encoded", first(1, zipped), 2, 0, time.Second},
		{"stored as encoded", first(9, answer(206, string(right), "Content-Encoding", "x-gzip",
			"Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, blobSize))), 1, 0, 0},
		{"encoded, total unknown", first(1, answer(206, string(right), "Content-Encoding", "x-gzip",
			"Content-Range", fmt.Sprintf("bytes %d-%d/*", off, off+n-1))), 2, 0, time.Second},
		{"204", first(1, answer(204, "")), 2, 0, time.Second},
		{"416", first(1, answer(416, "")), 2, 0, time.Second},
		{"500", first(3, answer(500, "")), 4, 0, 2 * time.Second},
		{"429, seconds", first(1, answer(429, "", "Retry-After", "3")), 2, 3 * time.Second,
			4 * time.Second},
		{"503, date", first(1, answer(503, "", "Retry-After", date)), 2, 7 * time.Second,
			8 * time.Second},
		{"429, for ever", first(1, answer(429, "", "Retry-After", "86400")), 2, 60 * time.Second,
			67 * time.Second},
		{"429, nonsense", first(1, answer(429, "", "Retry-After", "soon")), 2, 0, time.Second},
		{"no answer", first(1, hang(blob, 0)), 2, 15 * time.Second, 16 * time.Second},
		{"stalls", first(1, hang(blob, 150_000)), 2, 15 * time.Second, 15 * time.Second},
		{"redirect to nowhere", first(1, answer(307, "")), 2, 0, time.Second},
		{"redirect in a circle", first(14, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}), 15, 0, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				d := g.add(blob)
				g.fault = tc.fault
				defer net.serve("reg.test", g)()
				c := net.client(Config{})
				defer c.Close()
				i := mustImage(t, c, "reg.test/a/b:1")
				start := time.Now()
				got := make([]byte, n)
				if err := i.Blob(d).ReadAt(t.Context(), got, off); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				if !bytes.Equal(got, right) {
					t.Error("wrong bytes")
				}
				if r := g.requests("/blobs/"); len(r) != tc.requests {
					t.Errorf("%d requests, want %d: %q", len(r), tc.requests, r)
				}
				if took < tc.min || took > tc.max {
					t.Errorf("took %v, want %v to %v", took, tc.min, tc.max)
				}
				if n, s := i.Requests(), c.Stats(); n != uint64(tc.requests) || n != s.Requests {
					t.Errorf("image counts %d, client %+v", n, s)
				}
			})
		})
	}
}

// TestResume checks that a broken read goes on from the byte where it broke, and asks for no byte
// twice.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		blob := randomBytes(blobSize)
		d := g.add(blob)
		g.fault = first(2, cut(blob, 100_000))
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		r, err := mustImage(t, c, "reg.test/a/b:1").Blob(d).Range(t.Context(), 0, blobSize)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		path := "GET /v2/a/b/blobs/" + d.Digest.String()
		want := []string{path, path + " bytes=100000-1048575", path + " bytes=200000-1048575"}
		if l := g.requests(""); fmt.Sprint(l) != fmt.Sprint(want) {
			t.Errorf("requests %q, want %q", l, want)
		}
	})
}

// TestEnds checks what a read returns when its time is up, or when there is no hope.
func TestEnds(t *testing.T) {
	blob := randomBytes(1000)
	for _, tc := range []struct {
		name   string
		fault  fault
		is     []error
		says   string
		within time.Duration
		atMost int // requests
	}{
		{"500 for ever",
			first(1e9, answer(500, `{"errors":[{"message":"disk is full"}]}`, "Content-Type",
				"application/json")),
			[]error{context.DeadlineExceeded}, "disk is full", 60 * time.Second, 60},
		{"truncated for ever", first(1e9, cut(blob, 0)),
			[]error{context.DeadlineExceeded,
				io.ErrUnexpectedEOF}, "broke off", 60 * time.Second, 60},
		{"silent for ever", first(1e9, hang(blob, 0)),
			[]error{context.DeadlineExceeded}, "no byte", 60 * time.Second, 5},
		{"not found", first(1e9, answer(404, "")), []error{ErrNotFound}, "404", 0, 1},
		{"forbidden", first(1e9, answer(403, "")), []error{ErrUnauthorized}, "docker login", 0, 1},
		{"bad request", first(1e9, answer(400, "")), nil, "400", 0, 1},
		{"HTML for ever", first(1e9, answer(200, "<html>", "Content-Type", "text/html")),
			[]error{registry.ErrNotBlob}, "text/html", 60 * time.Second, 60},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				d := g.add(blob)
				g.fault = tc.fault
				defer net.serve("reg.test", g)()
				c := net.client(Config{})
				defer c.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				err := mustImage(t, c, "reg.test/a/b:1").Blob(d).ReadAt(ctx, make([]byte, 100), 0)
				if err == nil {
					t.Fatal("no error")
				}
				for _, want := range tc.is {
					if !errors.Is(err, want) {
						t.Errorf("error is not %v: %v", want, err)
					}
				}
				if !strings.Contains(err.Error(), tc.says) {
					t.Errorf("error does not say %q: %v", tc.says, err)
				}
				if took := time.Since(start); took > tc.within {
					t.Errorf("took %v, want at most %v", took, tc.within)
				}
				if l := g.requests(""); len(l) > tc.atMost {
					t.Errorf("%d requests, want at most %d", len(l), tc.atMost)
				}
			})
		})
	}
}

// TestCancel checks that a cancelled read returns at once, wherever it is, and that others go on.
func TestCancel(t *testing.T) {
	blob := randomBytes(blobSize)
	for name, f := range map[string]func(http.ResponseWriter, *http.Request){
		"before the answer":   hang(blob, 0),
		"within the body":     hang(blob, 1000),
		"within the back-off": answer(503, "", "Retry-After", "50"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t)
				g := newRegistry("reg.test")
				d := g.add(blob)
				g.fault = first(1, f)
				defer net.serve("reg.test", g)()
				c := net.client(Config{})
				defer c.Close()
				i := mustImage(t, c, "reg.test/a/b:1")
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				start := time.Now()
				wg.Go(func() {
					err := i.Blob(d).ReadAt(ctx, make([]byte, 2000), 0)
					if !errors.Is(err, context.Canceled) || time.Since(start) != 3*time.Second {
						t.Errorf("after %v: %v", time.Since(start), err)
					}
				})
				time.Sleep(time.Second)
				wg.Go(func() { // waits for the first one's answer, or for the host's time
					got := make([]byte, 2000)
					if err := i.Blob(d).ReadAt(t.Context(), got, 5); err != nil ||
						!bytes.Equal(got, blob[5:2005]) {
						t.Errorf("second read: %v", err)
					}
				})
				time.Sleep(2 * time.Second)
				cancel()
				wg.Wait()
			})
		})
	}
}

// TestOutside checks that ranges outside the blob cost no request.
func TestOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		d := g.add(randomBytes(1000))
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		for _, r := range [][2]int64{{-1, 5}, {0, 1001}, {1000, 1}, {1 << 62, 1 << 62}, {5, -1}} {
			if s, err := b.Range(t.Context(), r[0], r[1]); err == nil {
				s.Close()
				t.Errorf("range %v: no error", r)
			}
		}
		if err := b.ReadAt(t.Context(), nil, 1000); err != nil {
			t.Errorf("nothing, at the end: %v", err)
		}
		if l := g.requests(""); len(l) != 0 {
			t.Errorf("requests %q", l)
		}
	})
}

// TestStorm reads in parallel while the registry misbehaves in all ways by turns: every byte right,
// no read fails.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g := newRegistry("reg.test")
		blob := randomBytes(4 << 20)
		d := g.add(blob)
		faults := []func(http.ResponseWriter, *http.Request){
			cut(blob, 70_000), cut(blob, 0), hangUp, hang(blob, 0), hang(blob, 50_000), answer(429,
				"", "Retry-After", "1"), answer(500, ""),
			answer(200, "<html>", "Content-Type", "text/html"),
			func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(blob) },
		}
		g.fault = func(k int, w http.ResponseWriter, r *http.Request) bool {
			if k%2 == 0 {
				return false
			}
			faults[k/2%len(faults)](w, r)
			return true
		}
		defer net.serve("reg.test", g)()
		c := net.client(Config{})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				p := make([]byte, 100_000)
				for k := range 25 {
					off := int64((w*977_351 + k*131_071) % (len(blob) - len(p)))
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
					err := b.ReadAt(ctx, p, off)
					cancel()
					if err != nil {
						t.Errorf("read at %d: %v", off, err)
					} else if !bytes.Equal(p, blob[off:off+int64(len(p))]) {
						t.Errorf("read at %d: wrong bytes", off)
					}
				}
			})
		}
		wg.Wait()
		if s := c.Stats(); s.Retries == 0 {
			t.Errorf("nothing went wrong: %+v", s)
		}
	})
}

// TestReuse checks that reads one after the other need one connection, those that a redirect or a
// refusal precedes included.
func TestReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t)
		g, cdn, tokens := newRegistry("reg.test"), newRegistry("cdn.test"), newTokenServer(90*time.Second, false)
		blob := randomBytes(blobSize)
		d := cdn.add(blob)
		s := signer{to: cdn, life: 70 * time.Second, refuse: 403}
		g.auth, g.fault, cdn.auth = tokens.check, s.redirect, s.check(t)
		defer net.serve("reg.test", g)()
		defer net.serve("cdn.test", cdn)()
		defer net.serve("auth.test", tokens)()
		c := net.client(Config{})
		defer c.Close()
		b := mustImage(t, c, "reg.test/a/b:1").Blob(d)
		for k := range 20 {
			p := make([]byte, 300_000)
			off := int64(k * 30_000)
			if err := b.ReadAt(t.Context(), p, off); err != nil ||
				!bytes.Equal(p, blob[off:off+300_000]) {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		for _, host := range []string{"reg.test", "cdn.test"} {
			if n := net.at[host+":80"].accepted.Load(); n != 1 {
				t.Errorf("%d connections to %s", n, host)
			}
		}
	})
}
