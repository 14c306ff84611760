package fs

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// flipper changes one byte of a body.
type flipper struct {
	http.ResponseWriter
	at int64
}

func (f *flipper) Write(p []byte) (int, error) {
	if f.at >= 0 && f.at < int64(len(p)) {
		p = bytes.Clone(p)
		p[f.at] ^= 1
	}
	f.at -= int64(len(p))
	return f.ResponseWriter.Write(p)
}

// TestWrongDownload: a layer of which wrong bytes come is downloaded again, past caches, and never
// mounted wrong.
func TestWrongDownload(t *testing.T) {
	for name, tc := range map[string]struct {
		wrong  func(n int64, r *http.Request) bool
		at     int64
		serves bool
	}{
		"once":      {func(n int64, _ *http.Request) bool { return n == 1 }, 500, true},
		"head once": {func(n int64, _ *http.Request) bool { return n == 1 }, 0, true},
		"a cache, always": {func(_ int64, r *http.Request) bool {
			return r.Header.Get("Cache-Control") == ""
		}, 500, true},
		"always": {func(int64, *http.Request) bool { return true }, 500, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			host, rest, _ := strings.Cut(w.ref, "/")
			proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
			var n atomic.Int64
			front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, w.layers[0].String()) && tc.wrong(n.Add(1), r) {
					rw = &flipper{rw, tc.at}
				}
				proxy.ServeHTTP(rw, r)
			}))
			t.Cleanup(front.Close)
			w.ref = strings.TrimPrefix(front.URL, "http://") + "/" + rest
			table := w.open(testDir(t), Auto)
			m, err := table.Mount(t.Context(), w.layer(0), nil)
			if (err == nil) != tc.serves {
				t.Fatalf("after %d requests: %v", n.Load(), err)
			}
			if !tc.serves {
				if n.Load() != maxDownloads ||
					!strings.Contains(err.Error(), "sent something else") {
					t.Errorf("%d requests: %v", n.Load(), err)
				}
				return
			}
			if got := readTree(t, m.Dir); !strings.Contains(got, sum(bigFile)) {
				t.Errorf("wrong content:\n%s", got)
			}
		})
	}
}
