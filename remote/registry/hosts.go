package registry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// hostsCheckEvery is how often hosts.toml is looked at for changes.
const hostsCheckEvery = 5 * time.Second

// Hosts is the hosts that answer for one registry name, in the order in which to ask them.
type Hosts struct {
	hosts   []*Host
	stamp   string // of the configuration that it was made from
	checked time.Time
	Answers [questions]Doubt // what a registry is asked first, see Question

	bare       *http.Client // of hosts without settings of their own
	transports []*http.Transport
}

// close closes idle connections. Through the http.Client it would not reach below containerd's
// fallback from HTTPS to HTTP.
func (s *Hosts) close() {
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
}

// With returns the hosts that have a capability.
func (s *Hosts) With(c docker.HostCapabilities) []*Host {
	var out []*Host
	for _, h := range s.hosts {
		if h.caps.Has(c) {
			out = append(out, h)
		}
	}
	return out
}

// Naming returns the hosts that may say which content a name stands for: who refers to an image, or
// what a tag is.
func (s *Hosts) Naming() []*Host {
	var out []*Host
	for _, h := range s.hosts {
		if h.caps.Has(docker.HostCapabilityReferrers) || h.CanName() {
			out = append(out, h)
		}
	}
	return out
}

// hostsOf returns the hosts of a registry, and reads their configuration again when it has changed.
func (c *Client) hostsOf(ctx context.Context, registry string) (*Hosts, error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock() // over a few stats of local files
	old := c.hosts[registry]
	if old != nil && now.Sub(old.checked) < hostsCheckEvery {
		return old, nil
	}
	dir, stamp, err := c.hostDir(registry)
	if err == nil && old != nil && old.stamp == stamp {
		old.checked = now
		return old, nil
	}
	var s *Hosts
	if err == nil {
		s, err = c.loadHosts(ctx, registry, dir)
	}
	if err != nil {
		if old == nil {
			return nil, fmt.Errorf("configure registry %s: %w", registry, err)
		}
		c.Logger.Warn("registry configuration cannot be read, the former one stays",
			"registry", registry, "dir", dir, "err", err)
		old.checked = now
		return old, nil
	}
	s.stamp, s.checked = stamp, now
	if old != nil {
		c.Logger.Info("registry configuration has changed", "registry", registry, "dir", dir)
		old.close()
	}
	if len(c.hosts) >= maxShared {
		c.forgetLocked()
	}
	c.hosts[registry] = s
	return s, nil
}

// loadHosts has containerd read hosts.toml, so that a file means the same to both.
func (c *Client) loadHosts(ctx context.Context, registry, dir string) (*Hosts, error) {
	s := &Hosts{}
	opts := config.HostOptions{UpdateClient: c.tuner(s)}
	if dir != "" {
		opts.HostDir = func(string) (string, error) { return dir, nil }
	}
	// Which of the two a registry on this machine speaks is not known without a hosts.toml.
	_, port, _ := net.SplitHostPort(registry) // without one it is HTTPS's
	local := dir == "" && isLoopback(registry) && port != "" && port != "443"
	if local || c.PlainHTTP {
		opts.DefaultScheme = "http"
	}
	ctx = log.WithLogger(ctx, bridge(c.Logger.With("registry", registry)))
	found, err := config.ConfigureHosts(ctx, opts)(registry)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		// With settings for TLS containerd tries TLS first where http is asked for.
		t, direct := f.Client.Transport.(*http.Transport)
		cleartext := f.Scheme == "http" || !direct
		if h := s.same(f, cleartext); h != nil {
			h.caps |= f.Capabilities
			continue
		}
		h := &Host{
			tokens: f.Client, Scheme: f.Scheme, Name: f.Host, registry: registry, root: f.Path,
			caps: f.Capabilities, header: f.Header, cleartext: cleartext,
			unverified: direct && t.TLSClientConfig.InsecureSkipVerify,
			sessions:   map[string]*session{},
		}
		if local {
			h.tokens = &http.Client{Transport: newPlainFirst(f.Client.Transport)}
		}
		if c.Wrap != nil {
			h.tokens = &http.Client{Transport: c.Wrap(h.tokens.Transport)}
		}
		if c.Notice != nil {
			h.tokens = &http.Client{Transport: noticing{h.tokens.Transport, c.Notice}}
		}
		blobs := *h.tokens
		blobs.CheckRedirect = func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}
		h.client = &blobs
		if f.Host != registry && (registry != "docker.io" || f.Host != "registry-1.docker.io") {
			h.Namespace = registry
		}
		s.hosts = append(s.hosts, h)
	}
	return s, nil
}

// same returns the host that was configured at the same address, nil if there is none. A file that
// repeats its server among the hosts says there how the server is to be reached; containerd adds it
// once more, bare, with what the entry does not allow; on this machine with its own settings. One
// that has settings in the file, too, stays a host, and so does one that may name content where
// nothing proves who answers at the entry.
func (s *Hosts) same(f docker.RegistryHost, cleartext bool) *Host {
	for _, h := range s.hosts {
		switch {
		case withPort(h.cleartext, h.Name) != withPort(cleartext, f.Host) || h.root != f.Path:
		case !isLoopback(f.Host) && (h.cleartext != cleartext || f.Client != s.bare):
		case !isLoopback(f.Host) && h.unverified && !h.CanName():
		default:
			return h
		}
	}
	return nil
}

// withPort returns a host with its port, which http and https have if it does not.
func withPort(cleartext bool, name string) string {
	u := url.URL{Host: name}
	switch {
	case u.Port() != "":
		return name
	case cleartext:
		return name + ":80"
	}
	return name + ":443"
}

// tuner returns a function that adapts containerd's transports, which keep two idle connections per
// host, to many parallel reads. It stays with HTTP/1.1: ranges over several connections are not
// held up by one lost packet. containerd calls it first for the transport that it copies for the
// single hosts, so that their own dial timeouts, set in between, stay.
func (c *Client) tuner(s *Hosts) config.UpdateClientFunc {
	return func(client *http.Client) error {
		t, ok := client.Transport.(*http.Transport)
		if !ok {
			return fmt.Errorf("transport is a %T", client.Transport)
		}
		if len(s.transports) == 0 {
			s.bare = client
			t.DialContext = c.dialer.DialContext
		}
		if !slices.Contains(s.transports, t) {
			s.transports = append(s.transports, t)
		}
		t.MaxIdleConns = 0 // no limit but the one per host
		t.MaxIdleConnsPerHost = maxIdlePerHost
		t.IdleConnTimeout = 90 * time.Second
		t.ResponseHeaderTimeout = 0 // each attempt has its own, see watch
		t.ReadBufferSize = 16 << 10 // large reads go past it
		t.MaxResponseHeaderBytes = 256 << 10
		return nil
	}
}

// bridge is a logger for containerd's packages that hands warnings and errors on.
func bridge(to *slog.Logger) *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.WarnLevel)
	l.AddHook(slogHook{to})
	return logrus.NewEntry(l)
}

type slogHook struct{ to *slog.Logger }

func (slogHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (h slogHook) Fire(e *logrus.Entry) error {
	args := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		args = append(args, k, v)
	}
	h.to.Warn(e.Message, args...)
	return nil
}
