// Package registry runs image registries on this machine, with a network and
// misfortunes before them:
//
//	client ──▶ shaper (TCP: latency, bandwidth, bytes) ──▶ proxy (HTTP: requests, faults, log-in) ──▶ registry
//
// There are two: the CNCF's distribution, a process of its own without the
// referrers API, and one in this process that has the API. Tests and the demo
// use them, so this knows nothing of testing.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// Registry is a running registry. All methods may be called in parallel.
type Registry struct {
	direct  string // host:port of the registry itself
	process *node.Process
	server  *httptest.Server // or, in this process
	proxy   *proxy
	shaper  *shaper.Shaper
}

// Distribution starts the CNCF's registry with its blobs in dir, which is made.
func Distribution(ctx context.Context, dir string) (*Registry, error) {
	bin, err := node.Binary("registry")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q, maxthreads: 256}
  delete: {enabled: true}
http: {addr: %q}
`, filepath.Join(dir, "data"), addr)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	env := append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	p, err := node.StartProcess(ctx, "registry", filepath.Join(dir, "log"), env,
		[]string{bin, "serve", config}, func(ctx context.Context) error {
			return answers(ctx, addr)
		})
	if err != nil {
		return nil, err
	}
	r, err := front(addr)
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	r.process = p
	return r, nil
}

// WithReferrers starts a registry in this process that has the referrers API
// and keeps its blobs in dir, which must exist.
func WithReferrers(dir string) (*Registry, error) {
	h := ggcr.New(ggcr.WithReferrersSupport(true),
		ggcr.WithBlobHandler(ggcr.NewDiskBlobHandler(dir)),
		ggcr.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(h)
	r, err := front(server.Listener.Addr().String())
	if err != nil {
		server.Close()
		return nil, err
	}
	r.server = server
	return r, nil
}

// front puts proxy and shaper before a registry.
func front(direct string) (*Registry, error) {
	r := &Registry{direct: direct, proxy: newProxy(direct)}
	s, err := shaper.Open(r.proxy.addr(), shaper.Profile{})
	if err != nil {
		r.proxy.close()
		return nil, err
	}
	r.shaper = s
	return r, nil
}

// Front makes another way to the same registry, with a host, a network, faults
// and log-ins of its own. Closing it leaves the registry alone.
func (r *Registry) Front() (*Registry, error) { return front(r.direct) }

// Down cuts all connections and closes the port, until Up.
func (r *Registry) Down() error { return r.shaper.Close() }

// Up opens the port again after Down.
func (r *Registry) Up() error { return r.shaper.Reopen() }

// Close ends the registry and all connections to it.
func (r *Registry) Close() error {
	err := r.shaper.Close()
	r.proxy.close()
	if r.process != nil {
		return errors.Join(err, r.process.Stop())
	}
	if r.server != nil {
		r.server.Close()
	}
	return err
}

// Host is the registry's host:port as the tested clients use it: through the
// shaper and the proxy.
func (r *Registry) Host() string { return r.shaper.Addr() }

// Direct is the host:port without network, faults, log-in and accounts. What
// is pushed to one can be pulled from the other.
func (r *Registry) Direct() string { return r.direct }

// SetProfile changes the network before the registry.
func (r *Registry) SetProfile(p shaper.Profile) { r.shaper.SetProfile(p) }

// SetRule sets the faults from now on; nil: none.
func (r *Registry) SetRule(rule Rule) {
	r.proxy.mu.Lock()
	defer r.proxy.mu.Unlock()
	r.proxy.rule, r.proxy.n = rule, 0
}

// RequireLogin makes every request need this user, by basic authentication.
func (r *Registry) RequireLogin(user, password string) {
	r.proxy.mu.Lock()
	defer r.proxy.mu.Unlock()
	r.proxy.auth = &basicAuth{user, password}
}

// ExpireTokens makes every request need a token from now on, one that is given
// to whoever asks but that nobody has yet.
func (r *Registry) ExpireTokens() { r.proxy.expireTokens() }

// Traffic is what has passed since the last ResetTraffic.
type Traffic struct {
	shaper.Stats
	Requests []Request // in the order in which they ended
}

// BlobBytes is the sum of all blobs' bytes that were sent.
func (t Traffic) BlobBytes() int64 {
	var n int64
	for _, r := range t.Requests {
		if r.Blob() {
			n += r.Bytes
		}
	}
	return n
}

// Traffic returns what has passed. Requests under way are not in it.
func (r *Registry) Traffic() Traffic {
	r.proxy.mu.Lock()
	defer r.proxy.mu.Unlock()
	return Traffic{Stats: r.shaper.Stats(), Requests: slices.Clone(r.proxy.log)}
}

// ResetTraffic starts the counting anew.
func (r *Registry) ResetTraffic() {
	r.proxy.mu.Lock()
	defer r.proxy.mu.Unlock()
	r.proxy.log = nil
	r.shaper.Reset()
}

// freeAddr finds a free port. Another process may take it before it is used;
// then the registry does not start, and says so.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func answers(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("registry at %s: %s", addr, resp.Status)
	}
	return nil
}
