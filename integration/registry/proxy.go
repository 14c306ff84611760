package registry

import (
	"errors"
	"fmt"
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
	// token is what requests must bring, by the token flow; "": none. generation counts the tokens.
	token      string
	generation int
}

type basicAuth struct{ user, password string }

// tokenPath is where clients get tokens.
const tokenPath = "/token"

// expireTokens makes a token necessary that no client has yet.
func (p *proxy) expireTokens() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation++
	p.token = fmt.Sprintf("token-%d", p.generation)
}

// challenge answers requests for tokens and those without the right one, and
// tells whether it did.
func challenge(w http.ResponseWriter, r *http.Request, token string) bool {
	switch {
	case token == "":
		return false
	case r.URL.Path == tokenPath:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"token": %q, "expires_in": 3600}`, token)
		return true
	case r.Header.Get("Authorization") == "Bearer "+token:
		return false
	}
	repository, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	w.Header().Set("WWW-Authenticate",
		fmt.Sprintf(`Bearer realm="http://%s%s",service="registry",scope="repository:%s:pull"`,
			r.Host, tokenPath, repository))
	http.Error(w, "unauthorized", http.StatusUnauthorized)
	return true
}

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
	rule, n, auth, token := p.rule, p.n, p.auth, p.token
	p.n++
	p.mu.Unlock()
	rec := &recorder{ResponseWriter: w,
		req: Request{Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range"),
			conn: r.RemoteAddr}}
	defer func() { // an aborted answer is written down too
		p.mu.Lock()
		defer p.mu.Unlock()
		p.log = append(p.log, rec.req)
	}()
	if user, password, ok := r.BasicAuth(); auth != nil &&
		(!ok || user != auth.user || password != auth.password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		http.Error(rec, "unauthorized", http.StatusUnauthorized)
		return
	}
	var f Fault
	if rule != nil {
		f = rule(r, n)
	}
	if f.Hold != nil {
		if f = p.held(r, f); r.Context().Err() != nil {
			return
		}
	}
	if challenge(rec, r, token) {
		return
	}
	inject(rec, r, f, p.next)
}

// held waits until a request is let go and returns what happens to it then.
func (p *proxy) held(r *http.Request, f Fault) Fault {
	select {
	case <-f.Hold:
	case <-r.Context().Done():
	}
	p.mu.Lock()
	rule, n := p.rule, p.n
	p.mu.Unlock()
	if rule == nil {
		return Fault{}
	}
	f = rule(r, n)
	f.Hold = nil
	return f
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
