package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/api/events"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// layerLabel is on the content that containerd is told of and does not have: reading it, to find out
// what it is, would download it.
const layerLabel = "mica/layer"

// keepTries is how often a blob is told of that containerd's collector takes away meanwhile.
const keepTries = 3

// Blob returns the descriptor of a layer's blob, as the manifest has it.
func (c *Client) Blob(
	ctx context.Context, namespace string, manifest, layer digest.Digest,
) (ocispec.Descriptor, error) {
	if err := c.connected(ctx); err != nil {
		return ocispec.Descriptor{}, err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	doc, err := c.read(ctx, ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: manifest,
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, l := range doc.layers {
		if l.Digest == layer {
			return l, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("manifest %s has no layer %s", manifest, layer)
}

// Keep has a namespace know a blob of ref, which its content store has although nobody has written
// it. claim is called before each attempt, and makes it so.
func (c *Client) Keep(
	ctx context.Context, namespace, ref string, d ocispec.Descriptor, claim func() error,
) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	noted := map[string]string{layerLabel: "true"}
	if l, ok := parseName(ref); ok {
		noted[sourceLabel+l.host] = l.repository
	}
	var err error
	for range keepTries {
		if err = claim(); err != nil {
			return err
		}
		if err = c.keep(ctx, d, noted); err == nil || errdefs.IsAlreadyExists(err) {
			return nil
		}
	}
	return fmt.Errorf("tell containerd of blob %s: %w", d.Digest, err)
}

// keep commits a write of nothing, as containerd offers it for content that is there.
func (c *Client) keep(ctx context.Context, d ocispec.Descriptor, noted map[string]string) error {
	ref := "mica-" + d.Digest.String()
	w, err := c.content.Writer(ctx, content.WithRef(ref), content.WithDescriptor(d))
	if err != nil {
		return err
	}
	status, err := w.Status()
	if err == nil && status.Offset != d.Size {
		err = errors.New("containerd does not find it; its content_sharing_policy has to be " +
			`"shared"`)
	}
	if err == nil {
		err = w.Commit(ctx, d.Size, d.Digest, content.WithLabels(noted))
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		err = errors.Join(err, w.Close())
		if aborted := c.content.Abort(ctx, ref); !errdefs.IsNotFound(aborted) {
			err = errors.Join(err, aborted)
		}
	}
	return err
}

// Sources returns references that namespaces note for a blob: of repositories that it was pulled
// from.
func (c *Client) Sources(ctx context.Context, d digest.Digest) ([]string, error) {
	spaces, err := c.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	var refs []string
	for _, ns := range spaces {
		ctx := namespaces.WithNamespace(ctx, ns)
		info, err := c.content.Info(ctx, d)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return refs, err
		}
		all, err := c.list(ctx)
		if err != nil {
			return refs, err
		}
		found, err := c.pulledFrom(info, namesOf(all))
		if err == nil { // else it is not said where it comes from
			refs = append(refs, found...)
		}
	}
	return refs, nil
}

func (c *Client) namespaces(ctx context.Context) ([]string, error) {
	r, err := namespacesapi.NewNamespacesClient(c.conn).List(ctx,
		&namespacesapi.ListNamespacesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("list containerd's namespaces: %w", err)
	}
	names := make([]string, len(r.Namespaces))
	for i, ns := range r.Namespaces {
		names[i] = ns.Name
	}
	return names, nil
}

// EachImage calls fn for every image of every namespace, until ctx ends.
func (c *Client) EachImage(ctx context.Context, fn func(namespace, image string)) error {
	spaces, err := c.namespaces(ctx)
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		all, err := c.list(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			return err
		}
		for _, image := range all {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			fn(ns, image.Name)
		}
	}
	return nil
}

// Absent is a layer of an image whose blob a namespace does not have.
type Absent struct {
	Blob  ocispec.Descriptor
	Chain digest.Digest // that the layer makes
	Refs  []string      // where its image was pulled from
}

// Absent returns the layers of an image, of those manifests that containerd has, whose blobs it
// does not have, or that are not there when has is asked.
func (c *Client) Absent(
	ctx context.Context, namespace, image string, has func(digest.Digest) bool,
) ([]Absent, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	all, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	search := search{c: c, found: map[digest.Digest]document{}}
	for _, i := range all {
		if i.Name != image || i.Target == nil {
			continue
		}
		target := ocispec.Descriptor{
			MediaType: i.Target.MediaType, Digest: digest.Digest(i.Target.Digest),
		}
		if err := search.add(ctx, target, maxNested); err != nil {
			return nil, fmt.Errorf("image %s: %w", image, err)
		}
	}
	var absent []Absent
	for manifest, doc := range search.found {
		var refs []string
		for i, d := range doc.layers {
			_, err := c.content.Info(ctx, d.Digest)
			if err == nil && has(d.Digest) {
				continue
			}
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			if refs == nil {
				info, err := c.content.Info(ctx, manifest)
				if err != nil {
					return nil, err
				}
				if refs, err = c.pulledFrom(info, namesOf(all)); err != nil {
					return nil, err
				}
			}
			absent = append(absent, Absent{d, doc.chains[i], refs})
		}
	}
	return absent, nil
}

// WatchImages calls fn for every image that containerd gets or changes, until ctx ends, and
// connected whenever a containerd has begun to tell. Calls come one after the other.
func (c *Client) WatchImages(
	ctx context.Context, connected func(), fn func(namespace, image string),
) {
	const created, updated = "/images/create", "/images/update"
	c.subscribe(ctx, []string{created, updated}, connected, func(e *types.Envelope) {
		var name string
		switch e.Topic {
		case created:
			var i events.ImageCreate
			if e.Event != nil && proto.Unmarshal(e.Event.Value, &i) == nil {
				name = i.Name
			}
		case updated:
			var i events.ImageUpdate
			if e.Event != nil && proto.Unmarshal(e.Event.Value, &i) == nil {
				name = i.Name
			}
		}
		if name != "" {
			fn(e.Namespace, name)
		}
	})
}

// Drop takes blobs out of all namespaces in which they cannot be read. Where a blob can be read, it
// stays.
func (c *Client) Drop(ctx context.Context, blobs []digest.Digest) error {
	spaces, err := c.namespaces(ctx)
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		ctx := namespaces.WithNamespace(ctx, ns)
		for _, d := range blobs {
			if err := c.drop(ctx, d); err != nil {
				return fmt.Errorf("drop blob %s of namespace %s: %w", d, ns, err)
			}
		}
	}
	return nil
}

func (c *Client) drop(ctx context.Context, d digest.Digest) error {
	_, err := c.content.Info(ctx, d)
	if err == nil {
		var r content.ReaderAt
		// containerd has noted the size: only reading finds out
		if r, err = c.content.ReaderAt(ctx, ocispec.Descriptor{Digest: d}); err == nil {
			_, err = r.ReadAt(make([]byte, 1), 0)
			r.Close()
		}
		if errdefs.IsNotFound(err) {
			err = c.content.Delete(ctx, d)
		}
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// ContentPlugin returns the name of the plugin that keeps containerd's content: "content" is its
// own.
func (c *Client) ContentPlugin(ctx context.Context) (string, error) {
	r, err := introspectionapi.NewIntrospectionClient(c.conn).Plugins(ctx,
		&introspectionapi.PluginsRequest{Filters: []string{"type==" + plugins.ContentPlugin.String()}},
		grpc.WaitForReady(true))
	if err != nil {
		return "", fmt.Errorf("list containerd's plugins: %w", err)
	}
	for _, p := range r.Plugins {
		if p.InitErr == nil {
			return p.ID, nil
		}
	}
	return "", errors.New("containerd has no plugin for content")
}
