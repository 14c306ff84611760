package remote

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// network is an in-memory network of HTTP servers: inside a synctest bubble its time is virtual.
type network struct {
	t  *testing.T
	mu sync.Mutex
	at map[string]*listener // by host:port
}

func newNetwork(t *testing.T) *network { return &network{t: t, at: map[string]*listener{}} }

type listener struct {
	conns    chan net.Conn
	accepted atomic.Int64
	done     chan struct{}
	once     sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		l.accepted.Add(1)
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

// serve runs a server for http://host until the returned function is called.
func (n *network) serve(host string, h http.Handler) (stop func()) {
	l := &listener{conns: make(chan net.Conn), done: make(chan struct{})}
	if !strings.Contains(host, ":") {
		host += ":80"
	}
	n.mu.Lock()
	n.at[host] = l
	n.mu.Unlock()
	// A handler that waits for its client to leave must end with the server, too.
	ctx, cancel := context.WithCancel(n.t.Context())
	srv := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	return func() {
		n.mu.Lock()
		delete(n.at, host)
		n.mu.Unlock()
		cancel()
		_ = srv.Close()
		<-ended
	}
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.at[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Err: fmt.Errorf("%s: connection refused", addr)}
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// client returns a client on this network, where all hosts speak plain HTTP unless hosts.toml says
// otherwise.
func (n *network) client(cfg Config) *Client {
	n.t.Helper()
	cfg.PlainHTTP = true
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Wrap = func(rt http.RoundTripper) http.RoundTripper {
		t := rt.(*http.Transport)
		t.DialContext, t.Proxy = n.dial, nil
		return t
	}
	c, err := New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// How long the packages below keep something in mind, or ask.
const (
	doubtedFor, doubtedTimeout = time.Hour, 500 * time.Millisecond // see registry.Doubt
	probeTimeout               = 30 * time.Second
	lookEvery                  = time.Second      // for other credentials
	hostsCheckEvery            = 5 * time.Second  // for changes of hosts.toml
	suspectFor                 = 10 * time.Minute // a host that sent wrong bytes
	spoolIdle                  = 30 * time.Minute // a blob that came whole
	spoolAgain                 = time.Minute      // and is not thrown away before, if it is wrong
)

// fault answers the k-th matching request (from 0) instead of the registry, and says whether it
// did.
type fault func(k int, w http.ResponseWriter, r *http.Request) bool

// fakeRegistry is a registry that can be told to misbehave.
type fakeRegistry struct {
	name string

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string][]byte // by tag or digest
	log       []string          // "GET /v2/… bytes=0-9"
	seen      []http.Header
	fault     fault // for blobs
	faulted   int   // requests that fault has been asked about
	auth      func(r *http.Request) (challenge string, status int)
	handle    map[string]http.HandlerFunc // by path prefix, before all else
}

func newRegistry(name string) *fakeRegistry {
	return &fakeRegistry{name: name, blobs: map[digest.Digest][]byte{}, manifests: map[string][]byte{},
		handle: map[string]http.HandlerFunc{}}
}

func (g *fakeRegistry) add(b []byte) ocispec.Descriptor {
	d := digest.FromBytes(b)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.blobs[d] = b
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(b))}
}

// on has requests whose path begins with prefix answered by h.
func (g *fakeRegistry) on(prefix string, h http.HandlerFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handle[prefix] = h
}

func (g *fakeRegistry) handler(path string) http.HandlerFunc {
	g.mu.Lock()
	defer g.mu.Unlock()
	for prefix, h := range g.handle {
		if strings.HasPrefix(path, prefix) {
			return h
		}
	}
	return nil
}

// requests are the requests so far whose line contains s.
func (g *fakeRegistry) requests(s string) (out []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.log {
		if strings.Contains(l, s) {
			out = append(out, l)
		}
	}
	return out
}

// headers are those of the requests so far.
func (g *fakeRegistry) headers() []http.Header {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.seen)
}

func (g *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.log = append(g.log,
		strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Range")))
	g.seen = append(g.seen, r.Header.Clone())
	g.mu.Unlock()
	if g.auth != nil {
		if challenge, status := g.auth(r); status != 0 {
			if challenge != "" {
				w.Header().Set("WWW-Authenticate", challenge)
			}
			w.WriteHeader(status)
			return
		}
	}
	if h := g.handler(r.URL.Path); h != nil {
		h(w, r)
		return
	}
	_, blob, isBlob := strings.Cut(r.URL.Path, "/blobs/")
	_, name, isManifest := strings.Cut(r.URL.Path, "/manifests/")
	switch {
	case isBlob:
		g.mu.Lock()
		b, ok := g.blobs[digest.Digest(blob)]
		k := g.faulted
		g.faulted++
		f := g.fault
		g.mu.Unlock()
		if f != nil && f(k, w, r) {
			return
		}
		if !ok {
			http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	case isManifest:
		g.mu.Lock()
		b, ok := g.manifests[name]
		g.mu.Unlock()
		if !ok {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		_, _ = w.Write(b)
	default:
		http.NotFound(w, r)
	}
}

// randomBytes are n bytes that repeat nowhere.
func randomBytes(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// rangeOf is the range that a request asks for.
func rangeOf(r *http.Request, size int) (first, last int) {
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
		return 0, size - 1
	}
	return first, last
}

// first applies a fault to the first n requests.
func first(n int, f func(w http.ResponseWriter, r *http.Request)) fault {
	return func(k int, w http.ResponseWriter, r *http.Request) bool {
		if k < n {
			f(w, r)
		}
		return k < n
	}
}

// answer is a fixed answer; headers are pairs.
func answer(status int, body string, headers ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// hostsToml writes a hosts.toml for a registry and returns the config path.
func hostsToml(t *testing.T, registry, text string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(dir)
}

func mustImage(t *testing.T, c *Client, ref string) *Image {
	t.Helper()
	i, err := c.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// newServer serves on a loopback address and returns it.
func newServer(t testing.TB, h http.Handler) string {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}
