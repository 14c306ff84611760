package registry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
)

// Request is one request that the registry was asked for, as clients sent it.
type Request struct {
	Method string
	Path   string
	Range  string // header, "" where there is none
	Status int
	Bytes  int64 // of the answer's body, as far as it was sent

	conn string // the connection, as the shaper names it too
}

// Blob tells whether the request was for bytes of a blob.
func (r Request) Blob() bool {
	return r.Method == http.MethodGet && strings.Contains(r.Path, "/blobs/")
}

// proxy stands before a registry, writes down requests and injects faults.
type proxy struct {
	server *httptest.Server
	next   http.Handler

	mu   sync.Mutex
	log  []Request
	rule Rule
	n    int64 // requests since rule was set
	auth *basicAuth
}

type basicAuth struct{ user, password string }

// newProxy forwards to target, host:port.
func newProxy(target string) *proxy {
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: target})
			r.Out.Host = r.In.Host // locations in answers stay those of the proxy
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	rp.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		if !errors.Is(err, http.ErrAbortHandler) {
			w.WriteHeader(http.StatusBadGateway)
		}
	}
	p := &proxy{next: rp}
	p.server = httptest.NewServer(p)
	return p
}

func (p *proxy) close() { p.server.Close() }

func (p *proxy) addr() string { return p.server.Listener.Addr().String() }

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	rule, n, auth := p.rule, p.n, p.auth
	p.n++
	p.mu.Unlock()
	rec := &recorder{ResponseWriter: w, req: Request{Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range"), conn: r.RemoteAddr}}
	defer func() { // an aborted answer is written down too
		p.mu.Lock()
		defer p.mu.Unlock()
		p.log = append(p.log, rec.req)
	}()
	if user, password, ok := r.BasicAuth(); auth != nil && (!ok || user != auth.user || password != auth.password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		http.Error(rec, "unauthorized", http.StatusUnauthorized)
		return
	}
	var f Fault
	if rule != nil {
		f = rule(r, n)
	}
	inject(rec, r, f, p.next)
}

// recorder notes status and size of an answer.
type recorder struct {
	http.ResponseWriter
	req Request
}

func (r *recorder) WriteHeader(status int) {
	if status >= 200 {
		r.req.Status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.req.Status == 0 {
		r.req.Status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.req.Bytes += int64(n)
	return n, err
}

// Unwrap gives http.ResponseController the writer below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
