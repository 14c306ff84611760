// Package admin is what micad tells about itself over its socket: plain HTTP/1.1 with
// JSON, on the same UNIX socket that speaks gRPC to containerd. The mica
// command reads it; people may with `curl --unix-socket`.
//
//	GET /v1/info       Info
//	GET /v1/layers     []fs.Status
//	GET /v1/replays    []fs.ReplayStatus
//	GET /v1/starts     []Start, the latest
//	GET /v1/fallbacks  []Fallback
//	GET /v1/profiles   []Profile
//	GET /v1/cache      cache.Status
//	GET /v1/usage      []cache.Usage, of all layers on disk
//	GET /v1/image?ref= Image, asked of its registry, which may take 15 s
//	GET /metrics       Prometheus' text format
//	GET /debug/pprof/  Go's profiles, for `go tool pprof`
//	GET /              the page (package cmd/page), and its /events
//
// A profile is /v1/profiles/DIGEST, by its image's manifest, in Mica's binary format (package
// fs/profile): GET; PUT, which merges it with the one that is there, or replaces that with
// ?replace=true; DELETE.
//
// POST /v1/gc removes what nothing refers to, with ?unused=true also the content of layers that no
// container uses, and answers with Collected. POST /v1/verify/LAYER checks all that is on disk of a
// layer and answers with cache.Verified.
//
// Fields are added, never renamed or removed, within v1.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// DefaultAddress is micad's socket where nothing else is configured.
const DefaultAddress = "/run/micad/micad.sock"

// maxAnswer bounds what Client reads: 10,000 layers of a kilobyte.
const maxAnswer = 16 << 20

// maxReason bounds what an error tells of micad's answer, bytes.
const maxReason = 500

// answerTimeout is how long micad may take for an answer, but to a POST.
const answerTimeout = 20 * time.Second

var errNoAnswer = fmt.Errorf("micad has not answered for %v", answerTimeout)

// Paths of the API.
const (
	PathInfo      = "/v1/info"
	PathLayers    = "/v1/layers"
	PathReplays   = "/v1/replays"
	PathFallbacks = "/v1/fallbacks"
	PathProfiles  = "/v1/profiles"
	PathMetrics   = "/metrics"
	// PathGoroutines is what micad does now: the stacks of its goroutines.
	PathGoroutines = "/debug/pprof/goroutine?debug=2"
)

// Info describes the running daemon.
type Info struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Root    string    `json:"root"`
	Started time.Time `json:"started"`
	// Mode is how layers are served: what the configuration says, and for
	// "auto" what the kernel can do.
	Mode     string `json:"mode"`
	Lazy     string `json:"lazy_mode"`
	Complete string `json:"complete_mode"`
	// RemapIDs tells whether micad maps the IDs of user namespaces.
	RemapIDs bool `json:"remap_ids"`
	// Content is the folder of containerd's content store, where micad is its content plugin.
	Content string `json:"content_store,omitempty"`
	// BuildKit is the socket of the plugin for BuildKit, where micad serves one.
	BuildKit string `json:"buildkit_socket,omitempty"`
	// HostsDir is micad's remote.config_path.
	HostsDir string `json:"config_path"`
	// AsksContainerd is false where containerd_address is "none".
	AsksContainerd bool `json:"asks_containerd"`
	// Unlabelled counts layers that containerd prepared without telling which
	// layer of which image they are: its configuration lacks something.
	Unlabelled int64 `json:"unlabelled_prepares"`
	// Restoring is true until all layers known from before are mounted again.
	Restoring bool `json:"restoring"`
}

// Fallback is an image that was not lazy: containerd pulled a layer of it that micad could not
// serve, and those above it, or micad downloaded layers whole.
type Fallback struct {
	Ref    string    `json:"ref"`
	Layer  string    `json:"layer"` // the lowest that containerd pulled, or the first of Whole
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
	// Whole are the layers that micad downloaded before a container could start, and Size is that
	// of their blobs. Nil: containerd has pulled Layer.
	Whole []digest.Digest `json:"whole,omitempty"`
	Size  int64           `json:"size_bytes,omitempty"`
}

// Text says what was downloaded in place of being lazy, and why.
func (f *Fallback) Text() string {
	what := fmt.Sprintf("containerd pulled layer %.19s and those above it", f.Layer)
	if n := len(f.Whole); n > 0 {
		what = fmt.Sprintf("micad downloaded %d of its layers (%.1f MB) whole", n, float64(f.Size)/1e6)
	}
	return what + ": " + f.Reason
}

// Client asks the daemon behind a socket. Calls may run in parallel.
type Client struct {
	// Notice is told, in a line, when micad does not answer for a second. nil: nobody is told.
	Notice func(string)

	address string
	http    http.Client
}

// NewClient returns a client for the daemon's socket at address, a path.
func NewClient(address string) *Client {
	return &Client{address: address, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", address)
		},
		DisableKeepAlives: true,
	}}}
}

// Get asks for path and decodes the JSON answer into v. Where no daemon
// answers, the error says what to do.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	b, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read micad's answer to %s: %w", path, err)
	}
	return nil
}

// Transport reaches the daemon, whichever host a request names.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Text returns the answer to a GET of path as it is.
func (c *Client) Text(ctx context.Context, path string) ([]byte, error) {
	return c.send(ctx, http.MethodGet, path, nil)
}

// send sends a request with a body, which may be empty, and returns the answer's. The error wraps
// os.ErrNotExist where micad knows no such thing.
func (c *Client) send(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	what := fmt.Sprintf("ask micad to %s %s", method, path)
	if method == http.MethodPost { // it may work for long, but it answers other questions meanwhile
		if _, err := c.send(ctx, http.MethodGet, PathInfo, nil); err != nil {
			return nil, err
		}
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
		defer cancel()
		if c.Notice != nil {
			t := time.AfterFunc(time.Second, func() {
				c.Notice(fmt.Sprintf("waiting for the micad behind %s to answer", c.address))
			})
			defer t.Stop()
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://micad"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no micad at %s: start it (systemctl start micad) or name its "+
			"socket with --address", c.address)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("micad's socket %s is for root alone: run this command as root",
			c.address)
	case errors.Is(context.Cause(ctx), errNoAnswer):
		return nil, fmt.Errorf("%s: %w: somebody holds %s open, and nobody answers; "+
			"see micad's log (journalctl -u micad), and whether it starts at all",
			what, errNoAnswer, c.address)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = fmt.Errorf("more than %d bytes", maxAnswer)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", what, os.ErrNotExist)
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent:
		return nil, fmt.Errorf("%s: it answered %s: %s", what, resp.Status,
			strings.TrimSpace(string(answer[:min(len(answer), maxReason)])))
	}
	return answer, nil
}
