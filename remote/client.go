package remote

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/remote/creds"
)

// Config says how a Client reaches registries. The zero value works.
type Config struct {
	// ConfigPath is containerd's config_path: directories, separated by colons, that hold
	// HOST/hosts.toml or Docker's certificate files. Changes are seen within seconds. Empty: every
	// registry is asked directly.
	ConfigPath string
	// Credentials returns what a host may be shown, in the order in which to try it; none for
	// anonymous access. host is host[:port] as in the URL (registry-1.docker.io for Docker Hub),
	// repository as in image references ("docker.io/library/debian"). nil: anonymous.
	Credentials func(ctx context.Context, host, repository string) ([]creds.Credential, error)
	// UserAgent is sent with each request. Empty: "mica".
	UserAgent string

	// StallTimeout gives up an attempt during which the server sends nothing, or a few bytes only;
	// the read resumes elsewhere. 0: 15 s.
	StallTimeout time.Duration
	// DialTimeout bounds the making of a TCP connection where hosts.toml does not. 0: 8 s.
	DialTimeout time.Duration
	// MinBackoff and MaxBackoff bound the pause after every host has failed: it doubles from one to
	// the other, and the half of it is random. Whoever pauses is woken when a host answers somebody
	// else. 0: 100 ms, 2 s.
	MinBackoff, MaxBackoff time.Duration
	// MaxRetryAfter caps what a server may ask for by Retry-After. 0: 60 s.
	MaxRetryAfter time.Duration
	// ListTimeout is how long a registry is asked what refers to an image. 0: 4 s.
	ListTimeout time.Duration
	// MaxIdlePerHost is the number of connections per host kept for reuse. 0: 64.
	MaxIdlePerHost int
	// SpoolDir is where blobs lie, in files without a name, of hosts that ignore ranges: for as
	// long as they are read, and half an hour more. Empty: the system's folder for temporary files.
	SpoolDir string
	// GiveUp is how long an operation may bring nothing, no byte of a blob either: then no further
	// attempt is made. 0: as long as its context lasts. It does not hold for a blob WithPatience.
	GiveUp time.Duration
	// Notice is told, in a line, what is waited for: when an attempt has not been answered for a
	// second, and when one has failed. Calls run in parallel. nil: nobody is told.
	Notice func(string)
	// PlainHTTP asks registries by http where hosts.toml does not say how.
	PlainHTTP bool
	// Logger hears of changes in the hosts' configuration and of warnings in it. nil:
	// slog.Default().
	Logger *slog.Logger

	wrap func(http.RoundTripper) http.RoundTripper // tests put a network of their own here
}

// Client reaches the registries of a node. Images, connections, tokens and what is known of hosts
// are shared by all that use it.
type Client struct {
	cfg   Config
	log   *slog.Logger
	stats counters

	dialer *dialer
	spools spools
	served atomic.Uint64 // answers with bytes of blobs

	closing chan struct{} // closed by Close
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	hosts  map[string]*hostSet // by registry name
	repos  map[string]*repository
	images map[string]*Image
	tick   uint64 // order of use, for forgetting
}

// maxShared bounds the images (and the repositories) that a client remembers. One that is forgotten
// goes on working for those who hold it.
const maxShared = 1024

// New returns a client. It does no I/O.
func New(cfg Config) (*Client, error) {
	for _, v := range []time.Duration{
		cfg.StallTimeout, cfg.DialTimeout, cfg.MinBackoff, cfg.MaxBackoff, cfg.MaxRetryAfter,
		cfg.ListTimeout, cfg.GiveUp,
		cfg.GiveUp,
	} {
		if v < 0 {
			return nil, fmt.Errorf("configure registries: negative duration %v", v)
		}
	}
	if cfg.MaxIdlePerHost < 0 {
		return nil, fmt.Errorf("configure registries: negative number of idle connections %d",
			cfg.MaxIdlePerHost)
	}
	cfg.UserAgent = or(cfg.UserAgent, "mica")
	cfg.StallTimeout = or(cfg.StallTimeout, 15*time.Second)
	cfg.DialTimeout = or(cfg.DialTimeout, 8*time.Second)
	cfg.MinBackoff = or(cfg.MinBackoff, 100*time.Millisecond)
	cfg.MaxBackoff = max(or(cfg.MaxBackoff, 2*time.Second), cfg.MinBackoff)
	cfg.MaxRetryAfter = or(cfg.MaxRetryAfter, time.Minute)
	cfg.ListTimeout = or(cfg.ListTimeout, 4*time.Second)
	cfg.MaxIdlePerHost = or(cfg.MaxIdlePerHost, 64)
	c := &Client{
		cfg: cfg, log: or(cfg.Logger, slog.Default()), dialer: newDialer(cfg.DialTimeout),
		hosts: map[string]*hostSet{}, repos: map[string]*repository{}, images: map[string]*Image{},
		closing: make(chan struct{}),
	}
	c.spools.client = c
	return c, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Close closes connections that are idle, and ends the downloads of blobs that come whole for want
// of ranges. Other reads under way go on.
func (c *Client) Close() {
	c.spools.close()
	c.dialer.close()
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.closing)
	}
	c.mu.Unlock()
	c.running.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.hosts {
		s.close()
	}
}

// goes runs f in the background, with the values of ctx, until the client is closed.
func (c *Client) goes(ctx context.Context, f func(ctx context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.running.Go(func() {
		defer cancel()
		f(ctx)
	})
	c.running.Go(func() {
		select {
		case <-c.closing:
			cancel()
		case <-ctx.Done():
		}
	})
}

// Stats returns the counts over all images.
func (c *Client) Stats() Stats { return c.stats.stats() }

// Image returns the image that ref names: host/path[:tag][@digest], the full form that containerd
// uses. All calls with the same reference share one Image, and all images of one repository share
// tokens and redirect targets. No I/O.
func (c *Client) Image(ref string) (*Image, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", ref, err)
	}
	ns := spec.Hostname()
	name := strings.TrimPrefix(spec.Locator, ns+"/")
	if name == "" || name == spec.Locator || path.Clean(name) != name {
		return nil, fmt.Errorf("image reference %q: no repository", ref)
	}
	tag, _, _ := strings.Cut(spec.Object, "@")
	if spec.Digest() != "" {
		if err := spec.Digest().Validate(); err != nil {
			return nil, fmt.Errorf("image reference %q: %w", ref, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	key := spec.String()
	if i, ok := c.images[key]; ok {
		i.used, i.repo.used = c.tick, c.tick
		return i, nil
	}
	r, ok := c.repos[spec.Locator]
	if !ok {
		forgetOldest(c.repos, func(r *repository) uint64 { return r.used })
		r = &repository{client: c, registry: ns, name: name, blobs: map[digest.Digest]*blobState{}}
		c.repos[spec.Locator] = r
	}
	forgetOldest(c.images, func(i *Image) uint64 { return i.used })
	i := &Image{client: c, ref: key, tag: tag, digest: spec.Digest(), repo: r}
	i.stats.parent = &c.stats
	i.used, r.used = c.tick, c.tick
	c.images[key] = i
	return i, nil
}

// forgetOldest makes room in m for one more.
func forgetOldest[T any](m map[string]T, used func(T) uint64) {
	if len(m) < maxShared {
		return
	}
	var oldest string
	var at uint64
	for k, v := range m {
		if u := used(v); oldest == "" || u < at {
			oldest, at = k, u
		}
	}
	delete(m, oldest)
}
