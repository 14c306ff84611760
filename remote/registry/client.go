package registry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

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
	// ListTimeout is how long a registry is asked what refers to an image. 0: 4 s.
	ListTimeout time.Duration
	// SpoolDir is where blobs lie, in files without a name, of hosts that ignore ranges: for as
	// long as they are read, and half an hour more. Empty: the system's folder for temporary files.
	SpoolDir string
	// GiveUp is how long an operation may bring nothing, no byte of a blob either: then no further
	// attempt is made. 0: as long as its context lasts. It does not hold for a blob WithPatience.
	GiveUp time.Duration
	// Notice is told, in a line, what is waited for: when an attempt has not been answered for a
	// second, and when one has failed. Calls run in parallel. nil: nobody is told.
	Notice func(string)
	// Follow is shown each request as it is sent. It must not block. nil: nobody is.
	Follow func(*Request)
	// PlainHTTP asks registries by http where hosts.toml does not say how.
	PlainHTTP bool
	// Logger hears of changes in the hosts' configuration and of warnings in it. nil:
	// slog.Default().
	Logger *slog.Logger
	// Wrap, unless nil, is put around each transport: a test's network. No connections are made in
	// advance then.
	Wrap func(http.RoundTripper) http.RoundTripper
}

const (
	maxShared      = 1024             // registries, and scopes at a host, that are remembered
	maxIdlePerHost = 64               // connections per host that are kept for reuse
	maxRetryAfter  = 60 * time.Second // the most that a server gets which asks for a pause
)

// Client reaches the registries of a node. Connections, tokens and what is known of hosts are
// shared by all that use it.
type Client struct {
	Config // with its defaults

	stats  counters
	dialer dialer

	closing chan struct{} // closed by Close
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	hosts  map[string]*Hosts // by registry name
}

// New returns a client. It does no I/O.
func New(cfg Config) (*Client, error) {
	for _, v := range []time.Duration{
		cfg.StallTimeout, cfg.DialTimeout, cfg.MinBackoff, cfg.MaxBackoff, cfg.ListTimeout,
		cfg.GiveUp,
	} {
		if v < 0 {
			return nil, fmt.Errorf("configure registries: negative duration %v", v)
		}
	}
	cfg.UserAgent = cmp.Or(cfg.UserAgent, "mica")
	cfg.StallTimeout = cmp.Or(cfg.StallTimeout, 15*time.Second)
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, 8*time.Second)
	cfg.MinBackoff = cmp.Or(cfg.MinBackoff, 100*time.Millisecond)
	cfg.MaxBackoff = max(cmp.Or(cfg.MaxBackoff, 2*time.Second), cfg.MinBackoff)
	cfg.ListTimeout = cmp.Or(cfg.ListTimeout, 4*time.Second)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	c := &Client{Config: cfg, hosts: map[string]*Hosts{}, closing: make(chan struct{})}
	c.dialer.Dialer = net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 30 * time.Second}
	return c, nil
}

// Close ends what Go began, waits for that, and closes connections that are idle. Requests under
// way go on.
func (c *Client) Close() {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.closing)
	}
	c.mu.Unlock()
	c.running.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetLocked()
}

func (c *Client) forgetLocked() {
	for _, s := range c.hosts {
		s.close()
	}
	clear(c.hosts)
}

// Go runs f in the background, with the values of ctx, until the client is closed. It says whether
// it does: not after that.
func (c *Client) Go(ctx context.Context, f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
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
	return true
}

// Stats returns the counts over all repositories.
func (c *Client) Stats() Stats { return c.stats.stats() }
