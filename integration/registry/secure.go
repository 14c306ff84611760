package registry

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
)

// Secure is another way to a registry, by https with a certificate that nobody has signed.
type Secure struct {
	server *httptest.Server
	away   atomic.Bool
}

// Secure opens one. Its requests are the registry's own: written down, and met by its faults.
func (r *Registry) Secure() *Secure {
	s := &Secure{}
	h := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if s.away.Load() && q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") {
			to := "http://" + r.Host() + q.URL.Path
			http.Redirect(w, q, to, http.StatusTemporaryRedirect)
			return
		}
		r.proxy.ServeHTTP(w, q)
	})
	s.server = httptest.NewUnstartedServer(h)
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0) // clients connect in advance, and leave
	s.server.StartTLS()
	return s
}

// Host is its host:port.
func (s *Secure) Host() string { return s.server.Listener.Addr().String() }

// RedirectBlobs has blobs be redirected to the registry, without TLS, from now on or not any more.
func (s *Secure) RedirectBlobs(away bool) { s.away.Store(away) }

// Close ends it.
func (s *Secure) Close() error {
	s.server.Close()
	return nil
}
