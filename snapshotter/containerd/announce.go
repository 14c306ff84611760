package containerd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/mica-snapshotter/mica/snapshotter"
)

const (
	topic     = "/content/create"
	dockerHub = "docker.io" // has no port

	maxManifest = 1 << 20 // bytes
	maxLayers   = 512     // more cannot be mounted
	atOnce      = 8       // manifests that are looked at

	// The label follows the event, after a transaction of containerd's database. It is asked for
	// after labelTick, and less and less often, because content that is imported never has one.
	labelTick = time.Millisecond
	labelWait = time.Second
)

// Watch calls fn for every image whose manifest comes to containerd, until ctx ends. The image has
// its repository for a reference, and its layers, of which there is at least one; its chains are
// not known yet. came is called before, with the layers alone, as soon as the manifest has been read.
// Calls may be parallel, and should not take long.
func (c *Client) Watch(
	ctx context.Context, came func(layers []digest.Digest), fn func(snapshotter.Image),
) {
	var looking sync.WaitGroup
	defer looking.Wait()
	slots := make(chan struct{}, atOnce)
	connected := func() {
		c.log.Info("containerd tells of pulls as they begin", "addresses", c.addresses)
	}
	c.subscribe(ctx, []string{topic}, connected, func(e *types.Envelope) {
		d, ok := manifestOf(e)
		if !ok {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			return // it is pulled without
		}
		looking.Go(func() {
			defer func() { <-slots }()
			image, err := c.look(namespaces.WithNamespace(ctx, e.Namespace), d, came)
			switch {
			case err == nil:
				fn(image)
			case ctx.Err() == nil:
				c.log.Debug("a pull is not heard of as it begins", "manifest", d, "err", err)
			}
		})
	})
}

// subscribe calls fn for containerd's events of some topics, one after the other, until ctx ends.
// Where there is no containerd, or none any more, it waits for one, and calls connected when it is
// there.
func (c *Client) subscribe(
	ctx context.Context, topics []string, connected func(), fn func(*types.Envelope),
) {
	filters := make([]string, len(topics))
	for i, t := range topics {
		filters[i] = `topic=="` + t + `"`
	}
	for {
		err := c.listen(ctx, filters, connected, fn)
		select {
		case <-ctx.Done():
			return
		case <-time.After(redial):
			c.log.Debug("containerd has ceased to tell of pulls", "addresses", c.addresses,
				"err", err)
		}
	}
}

// listen is subscribe for as long as this containerd is there.
func (c *Client) listen(
	ctx context.Context, filters []string, connected func(), fn func(*types.Envelope),
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := eventsapi.NewEventsClient(c.conn).Subscribe(ctx,
		&eventsapi.SubscribeRequest{Filters: filters}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	connected()
	for {
		e, err := stream.Recv()
		if err != nil {
			return err
		}
		fn(e)
	}
}

// manifestOf returns the digest of what an event tells of, if that may be an image's manifest.
func manifestOf(e *types.Envelope) (digest.Digest, bool) {
	var c events.ContentCreate
	if e.Topic != topic || e.Event == nil ||
		proto.Unmarshal(e.Event.Value, &c) != nil || c.Size > maxManifest {
		return "", false
	}
	if c.MediaType != "" && !images.IsManifestType(c.MediaType) {
		return "", false // older versions do not say
	}
	d := digest.Digest(c.Digest)
	return d, d.Validate() == nil
}

// look returns the image whose manifest has come to containerd's content store, which has verified
// it.
func (c *Client) look(
	ctx context.Context, d digest.Digest, came func(layers []digest.Digest),
) (snapshotter.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, labelWait)
	defer cancel()
	b, err := c.bytes(ctx, d)
	if err != nil {
		return snapshotter.Image{}, err
	}
	_, layers := parseManifest(b)
	if len(layers) == 0 || len(layers) > maxLayers {
		return snapshotter.Image{}, fmt.Errorf("an image of %d layers", len(layers))
	}
	image := document{layers: layers}.image(d, nil)
	came(image.Layers)
	for wait := labelTick; ; wait *= 2 {
		info, err := c.content.Info(ctx, d)
		if err != nil {
			return snapshotter.Image{}, err
		}
		if host, repository, ok := source(info.Labels); ok {
			ref, err := c.locate(ctx, host, repository)
			image.Refs = []string{ref}
			return image, err
		}
		select {
		case <-ctx.Done():
			return snapshotter.Image{}, errors.New("it is not said where it comes from")
		case <-time.After(wait):
		}
	}
}

// source returns the host and a repository that containerd has noted for content.
func source(noted map[string]string) (host, repository string, ok bool) {
	for key, value := range noted {
		host, ok := strings.CutPrefix(key, sourceLabel)
		if repository, _, _ := strings.Cut(value, ","); ok && host != "" && repository != "" {
			return host, repository, true
		}
	}
	return "", "", false
}

// locate returns a repository's reference. Where its registry's port is not known, it is not
// guessed.
func (c *Client) locate(ctx context.Context, host, repository string) (string, error) {
	var names []string
	if host != dockerHub { // has no port
		all, err := c.list(ctx)
		if err != nil {
			return "", err
		}
		names = namesOf(all)
	}
	if found := c.locateAll(names, host, repository, false); len(found) == 1 {
		return found[0], nil
	}
	return "", portError(host)
}

// portError is why a registry is not asked.
func portError(host string) error {
	return fmt.Errorf(
		"the port of registry %s is not known (a folder HOST:PORT below config_path tells)", host)
}
