package containerd

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
)

// Container is a container that containerd has made.
type Container struct {
	Namespace string
	ID        string
	Image     string // its name
	Labels    map[string]string
	Made      time.Time
}

// WatchContainers calls fn for every container that containerd makes, until ctx ends. Calls come
// one after the other.
func (c *Client) WatchContainers(ctx context.Context, fn func(Container)) {
	c.subscribe(ctx, []string{"/containers/create"}, func() {}, func(e *types.Envelope) {
		var made events.ContainerCreate
		if e.Event == nil || proto.Unmarshal(e.Event.Value, &made) != nil {
			return
		}
		r, err := containersapi.NewContainersClient(c.conn).Get(
			namespaces.WithNamespace(ctx, e.Namespace), &containersapi.GetContainerRequest{ID: made.ID})
		if err != nil {
			c.log.Debug("a container is not known any more", "container", made.ID, "err", err)
			return
		}
		fn(Container{Namespace: e.Namespace, ID: made.ID, Image: r.Container.Image,
			Labels: r.Container.Labels, Made: r.Container.CreatedAt.AsTime()})
	})
}

// LayersOf returns the layers of an image, of all its manifests that containerd has.
func (c *Client) LayersOf(
	ctx context.Context, namespace, image string,
) (map[digest.Digest]bool, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	r, err := c.images.Get(ctx, &imagesapi.GetImageRequest{Name: image})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", image, err)
	}
	search := search{c: c, found: map[digest.Digest]document{}}
	err = search.add(ctx, ocispec.Descriptor{
		MediaType: r.Image.Target.GetMediaType(), Digest: digest.Digest(r.Image.Target.GetDigest()),
	}, maxNested)
	layers := map[digest.Digest]bool{}
	for _, doc := range search.found {
		for _, l := range doc.layers {
			layers[l.Digest] = true
		}
	}
	return layers, err
}

// Containers returns the labels of the containers of all namespaces, by their IDs.
func (c *Client) Containers(ctx context.Context) (map[string]map[string]string, error) {
	if err := c.connected(ctx); err != nil {
		return nil, err
	}
	spaces, err := c.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	labels := map[string]map[string]string{}
	for _, ns := range spaces {
		r, err := containersapi.NewContainersClient(c.conn).List(
			namespaces.WithNamespace(ctx, ns), &containersapi.ListContainersRequest{})
		if err != nil {
			return nil, fmt.Errorf("list containerd's containers: %w", err)
		}
		for _, one := range r.Containers {
			labels[one.ID] = one.Labels
		}
	}
	return labels, nil
}
