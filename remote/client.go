package remote

import (
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/remote/ranges"
	"github.com/mica-snapshotter/mica/remote/registry"
)

// The parts that are made below.
type (
	// Config says how a Client reaches registries. The zero value works.
	Config = registry.Config
	// Stats counts what a Client has done since it was made.
	Stats = registry.Stats
	// Request is a request that is sent, as Config.Follow is shown it.
	Request = registry.Request
	// Sent is what is known of a Request.
	Sent = registry.Sent
	// Blob is one blob of an image, or of several images that have it.
	Blob = ranges.Blob
)

// The errors of package registry that callers ask for.
var (
	ErrNotFound     = registry.ErrNotFound
	ErrUnauthorized = registry.ErrUnauthorized
	ErrCorrupt      = registry.ErrCorrupt
	ErrTooLarge     = registry.ErrTooLarge
)

// maxKept is how many bytes of manifests a client keeps.
const maxKept = 2 << 20

// Client reaches the registries of a node. Connections, tokens and what is known of hosts and blobs
// are shared by all that use it.
type Client struct {
	registries *registry.Client
	blobs      *ranges.Blobs

	mu   sync.Mutex
	kept map[keptKey][]byte // manifests seen, because Resolve is followed by Manifest as a rule
	size int
}

type keptKey struct {
	repository string // a manifest is its repository's to give
	digest     digest.Digest
}

// New returns a client. It does no I/O.
func New(cfg Config) (*Client, error) {
	c, err := registry.New(cfg)
	if err != nil {
		return nil, err
	}
	return &Client{
		registries: c, blobs: ranges.New(c), kept: map[keptKey][]byte{},
	}, nil
}

// Close closes connections that are idle, and ends the downloads of blobs that come whole for want
// of ranges. Other reads under way go on.
func (c *Client) Close() {
	c.blobs.Close()
	c.registries.Close()
}

// Stats returns the counts over all images.
func (c *Client) Stats() Stats { return c.registries.Stats() }

// Image returns the image that ref names: host/path[:tag][@digest], the full form that containerd
// uses. No I/O.
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
	return &Image{
		client: c, ref: spec.String(), tag: tag, digest: spec.Digest(),
		repo: c.registries.Repository(ns, name),
	}, nil
}

func (i *Image) keptManifest(d digest.Digest) []byte {
	i.client.mu.Lock()
	defer i.client.mu.Unlock()
	return i.client.kept[keptKey{i.repo.String(), d}]
}

func (i *Image) keep(d digest.Digest, b []byte) {
	c := i.client
	c.mu.Lock()
	defer c.mu.Unlock()
	key := keptKey{i.repo.String(), d}
	if _, ok := c.kept[key]; ok || len(b) > maxKept {
		return
	}
	if c.size+len(b) > maxKept {
		clear(c.kept)
		c.size = 0
	}
	c.kept[key] = b
	c.size += len(b)
}
