package registry

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// plainFirst is the transport to a registry on this machine: HTTP without TLS, unless the server
// turns out to want TLS. The other way round, as containerd does it, every process
// pays a connection and two round trips to learn what is almost always so.
type plainFirst struct {
	http.RoundTripper
	tls atomic.Bool
}

// newPlainFirst returns a transport over one that is for this registry alone. Certificates of
// such registries are not verified, as containerd does not.
func newPlainFirst(t http.RoundTripper) *plainFirst {
	if t, ok := t.(*http.Transport); ok {
		t.TLSClientConfig.InsecureSkipVerify = true
	}
	return &plainFirst{RoundTripper: t}
}

// RoundTrip implements http.RoundTripper.
func (p *plainFirst) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "http" {
		return p.RoundTripper.RoundTrip(r)
	}
	if !p.tls.Load() {
		resp, err := p.RoundTripper.RoundTrip(r)
		if !wantsTLS(resp, err) || r.Body != nil && r.Body != http.NoBody && r.GetBody == nil {
			return resp, err
		}
		if resp != nil {
			resp.Body.Close()
		}
		p.tls.Store(true)
	}
	again := r.Clone(r.Context())
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		again.Body = body
	}
	again.URL.Scheme = "https"
	return p.RoundTripper.RoundTrip(again)
}

// wantsTLS tells whether a server answered a plain request as servers with TLS do: with a TLS
// alert, or with a 400 that says so (Go, nginx, Apache).
func wantsTLS(resp *http.Response, err error) bool {
	if err != nil {
		return strings.Contains(err.Error(), `malformed HTTP response "\x15\x03`)
	}
	if resp.StatusCode != http.StatusBadRequest {
		return false
	}
	head, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
	return bytes.Contains(head, []byte("HTTPS")) || bytes.Contains(head, []byte("SSL"))
}
