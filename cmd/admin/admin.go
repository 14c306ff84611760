// Package admin is what micad tells about itself over its socket: plain HTTP/1.1 with
// JSON, on the same UNIX socket that speaks gRPC to containerd. The mica
// command reads it; people may with `curl --unix-socket`.
//
//	GET /v1/info       Info
//	GET /v1/layers     []fs.Status
//	GET /v1/fallbacks  []Fallback
//	GET /metrics       Prometheus' text format
//
// Fields are added, never renamed or removed, within v1.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// maxAnswer bounds what Client reads: 10,000 layers of a kilobyte.
const maxAnswer = 16 << 20

// Paths of the API.
const (
	PathInfo      = "/v1/info"
	PathLayers    = "/v1/layers"
	PathFallbacks = "/v1/fallbacks"
	PathMetrics   = "/metrics"
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
	// Unlabelled counts layers that containerd prepared without telling which
	// layer of which image they are: its configuration lacks something.
	Unlabelled int64 `json:"unlabelled_prepares"`
	// Restoring is true until all layers known from before are mounted again.
	Restoring bool `json:"restoring"`
}

// Fallback is a layer that micad could not serve, so that containerd pulled it.
type Fallback struct {
	Ref    string    `json:"ref"`
	Layer  string    `json:"layer"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
}

// Client asks the daemon behind a socket. Calls may run in parallel.
type Client struct {
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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://micad"+path, nil)
	if err != nil {
		return fmt.Errorf("ask micad for %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no micad at %s: start it (systemctl start micad) or name its socket with --address", c.address)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("micad's socket %s is for root alone: run this command as root", c.address)
	case err != nil:
		return fmt.Errorf("ask micad for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask micad for %s: it answered %s", path, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("read micad's answer to %s: %w", path, err)
	}
	return nil
}
