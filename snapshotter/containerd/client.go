// Package containerd asks containerd what a snapshotter is not told: which images have a chain of
// layers, where they were pulled from, and which images it has begun to pull.
//
// # Whose chain it is
//
// containerd gives a snapshotter a chain ID, which is made of the diffIDs that an image's config
// claims. Two images that claim the same chain share its snapshots, and nothing in a call says for
// which of them a container is made. containerd's image store and content store do:
//
//	image store: name ── target ──▶ index or manifest ──▶ config: diffIDs ──▶ chain IDs
//	content store: manifest ── label containerd.io/distribution.source.HOST ──▶ repositories
//
// The label names the repositories that the manifest was really pulled from. A name alone does not:
// an operator may have given it to an image on the node. The label has no port: names tell that.
//
// # Whose layer it is
//
// Clients that know nothing of lazy pulling name the chain of a layer, and no image. Its manifest
// and config are in the content store by then: those that claim the chain tell, newest first, which
// blob it is and where from (Claiming).
//
// # Pulls as they begin
//
// containerd asks a snapshotter for the first layer when it has the image's manifest and, after
// that, its configuration: two or more round trips and several commits later than an image's name
// is known. An event tells of the manifest at once. That is all that Mica needs to begin:
//
//	event /content/create ──▶ Watch ── manifest, label, names ──▶ snapshotter.Image
//
// Nothing depends on it: without events of manifests (before containerd 2.1), or where the
// registry's port is not known, a pull begins when containerd asks.
//
// # Concurrency
//
// All methods may run in parallel. One connection serves them all. What a manifest says never
// changes, and is kept.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mica-snapshotter/mica/snapshotter"
)

var _ snapshotter.Images = (*Client)(nil)

// Addresses returns the sockets of a containerd that was not told another: as packages start it, as
// k3s and RKE2 do, and as dockerd does where it finds none.
func Addresses() []string {
	return []string{
		defaults.DefaultAddress,
		"/run/k3s/containerd/containerd.sock",
		"/run/docker/containerd/containerd.sock",
	}
}

const (
	maxDocument = 8 << 20 // bytes of a manifest, an index or a config
	maxKept     = 4096    // documents

	redial      = time.Second / 2 // between attempts to connect
	connectWait = time.Second     // how long a question waits for the connection
	connectMost = 3               // questions in a row that wait in vain, before none does
)

// Client asks one containerd. Make it with New.
type Client struct {
	addresses  []string
	configPath string           // see New
	conn       *grpc.ClientConn // connects by itself, and again when containerd has restarted
	images     imagesapi.ImagesClient
	content    content.Store
	log        *slog.Logger

	missed atomic.Int32 // questions in a row for which there was no connection

	mu   sync.Mutex
	kept map[asked]document
}

// New returns a client of the containerd with the first of these sockets that answers. None need be
// there yet. configPath is its config_path for registries, folders separated by colons. Call Close
// when done.
func New(addresses []string, configPath string, log *slog.Logger) (*Client, error) {
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dial(ctx, addresses)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: redial, Multiplier: 1, MaxDelay: redial},
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return &Client{
		addresses: addresses, configPath: configPath, conn: conn, log: log,
		images: imagesapi.NewImagesClient(conn), content: proxy.NewContentStore(conn),
		kept: map[asked]document{},
	}, nil
}

// dial connects to the first of these sockets that answers.
func dial(ctx context.Context, addresses []string) (net.Conn, error) {
	var errs []error
	for _, a := range addresses {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", a)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// connected returns when there is a connection. It waits for a moment, because a containerd that
// has just started may call micad before micad has connected to it.
func (c *Client) connected(ctx context.Context) error {
	wait := connectWait
	if c.missed.Load() >= connectMost {
		wait = 0 // it is elsewhere: each layer of a pull would wait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		state := c.conn.GetState()
		if state == connectivity.Ready {
			c.missed.Store(0)
			return nil
		}
		c.conn.Connect()
		if !c.conn.WaitForStateChange(ctx, state) {
			c.missed.Add(1)
			return fmt.Errorf("no containerd at %s (see containerd_address in micad's "+
				"configuration)",
				strings.Join(c.addresses, ", "))
		}
	}
}

// asked is a document, and what it was taken for: an index is an empty manifest.
type asked struct {
	digest digest.Digest
	index  bool
}

// keeps says whether a manifest is known.
func (c *Client) keeps(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.kept[asked{digest: d}]
	return ok
}

// read returns a document of the content store, which has verified it. What is there and says
// nothing of layers has none.
func (c *Client) read(ctx context.Context, d ocispec.Descriptor) (document, error) {
	key := asked{d.Digest, images.IsIndexType(d.MediaType)}
	c.mu.Lock()
	doc, ok := c.kept[key]
	c.mu.Unlock()
	if ok {
		return doc, nil
	}
	b, err := c.bytes(ctx, d.Digest)
	if err != nil {
		return document{}, err
	}
	if key.index {
		doc = parseIndex(b)
	} else {
		config, layers := parseManifest(b)
		if config != "" {
			if b, err = c.bytes(ctx, config); err != nil {
				return document{}, err
			}
			doc = parseConfig(b, layers)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) >= maxKept {
		clear(c.kept)
	}
	c.kept[key] = doc
	return doc, nil
}

func (c *Client) bytes(ctx context.Context, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("content %q: %w", d, err)
	}
	r, err := c.content.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	defer r.Close()
	if r.Size() > maxDocument {
		return nil, fmt.Errorf("content %s: %d bytes are more than a manifest has", d, r.Size())
	}
	b := make([]byte, r.Size())
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, r.Size()), b); err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	return b, nil
}
