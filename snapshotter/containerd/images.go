package containerd

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/snapshotter"
)

const (
	maxNested = 4 // how deep an index may lie in others

	sourceLabel = labels.LabelDistributionSource + "." // with the registry's host, without its port

	// fullLabel is a length of key and value from which on containerd may have had no room for one
	// more repository: it leaves out what takes more than 4096 bytes.
	fullLabel = 3500

	// configLabel is on the content of every manifest that containerd keeps: without it, its config
	// would be collected.
	configLabel = "containerd.io/gc.ref.content.config"
)

// With implements snapshotter.Images.
func (c *Client) With(
	ctx context.Context, in snapshotter.Scope, chain digest.Digest,
) ([]snapshotter.Image, error) {
	ctx = namespaces.WithNamespace(ctx, in.Namespace)
	all, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	search := search{c: c, found: map[digest.Digest]document{}}
	for _, i := range all {
		if i.Target == nil {
			continue
		}
		target := ocispec.Descriptor{
			MediaType: i.Target.MediaType, Digest: digest.Digest(i.Target.Digest),
		}
		if err := search.add(ctx, target, maxNested); err != nil {
			return nil, fmt.Errorf("image %s: %w", i.Name, err)
		}
	}
	if in.Unnamed {
		manifests, err := c.manifests(ctx, true)
		if err != nil {
			return nil, err
		}
		for _, info := range manifests {
			m := ocispec.Descriptor{
				MediaType: ocispec.MediaTypeImageManifest, Digest: info.Digest,
			}
			if err := search.add(ctx, m, maxNested); err != nil {
				return nil, err
			}
		}
	}
	names := append(namesOf(all), in.Known...)
	var whole, longer []snapshotter.Image
	for d, doc := range search.found {
		at := slices.Index(doc.chains, chain)
		if at < 0 {
			continue
		}
		refs, err := c.sources(ctx, d, names)
		if err != nil {
			return nil, err
		}
		image := doc.image(d, refs)
		if at == len(doc.chains)-1 {
			whole = append(whole, image)
		} else {
			longer = append(longer, image)
		}
	}
	if len(whole) > 0 {
		return whole, nil
	}
	return longer, nil
}

// Named implements snapshotter.Images.
func (c *Client) Named(
	ctx context.Context, namespace, ref string, manifest digest.Digest,
) (snapshotter.Image, error) {
	if err := c.connected(ctx); err != nil {
		return snapshotter.Image{}, err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: manifest}
	doc, err := c.read(ctx, d)
	if err != nil {
		return snapshotter.Image{}, err
	}
	return doc.image(manifest, []string{ref}), nil
}

// list returns all images of a namespace.
func (c *Client) list(ctx context.Context) ([]*imagesapi.Image, error) {
	if err := c.connected(ctx); err != nil {
		return nil, err
	}
	r, err := c.images.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containerd's images: %w", err)
	}
	return r.Images, nil
}

func namesOf(all []*imagesapi.Image) []string {
	names := make([]string, len(all))
	for i, image := range all {
		names[i] = image.Name
	}
	return names
}

// search collects the manifests of images.
type search struct {
	c       *Client
	found   map[digest.Digest]document
	present map[digest.Digest]bool // the manifests that containerd has; nil: not asked yet
}

// add adds the manifests that a target leads to, and that containerd has.
func (x *search) add(ctx context.Context, d ocispec.Descriptor, depth int) error {
	if _, ok := x.found[d.Digest]; ok || depth == 0 {
		return nil
	}
	index := images.IsIndexType(d.MediaType)
	if !index && !images.IsManifestType(d.MediaType) {
		return nil
	}
	if !index && depth < maxNested && !x.c.keeps(d.Digest) {
		if err := x.look(ctx); err != nil {
			return err
		}
		if !x.present[d.Digest] { // of another platform, for instance
			return nil
		}
	}
	doc, err := x.c.read(ctx, d)
	if errdefs.IsNotFound(err) {
		return nil // no container can be made of it
	}
	if err != nil {
		return err
	}
	if !index {
		x.found[d.Digest] = doc
		return nil
	}
	for _, child := range doc.children {
		if err := x.add(ctx, child, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// look finds the manifests that containerd has.
func (x *search) look(ctx context.Context) error {
	if x.present != nil {
		return nil
	}
	all, err := x.c.manifests(ctx, false)
	if err != nil {
		return err
	}
	x.present = map[digest.Digest]bool{}
	for _, info := range all {
		x.present[info.Digest] = true
	}
	return nil
}

// manifests returns the manifests of a namespace that containerd has. Those that BuildKit pulls do
// not name their config: with unnamed, all content that comes from a registry and may be one is
// returned.
func (c *Client) manifests(ctx context.Context, unnamed bool) (all []content.Info, err error) {
	var only []string
	if !unnamed {
		only = []string{fmt.Sprintf("labels.%q", configLabel)}
	}
	err = c.content.Walk(ctx, func(i content.Info) error {
		_, _, pulled := source(i.Labels)
		_, layer := i.Labels[layerLabel]
		if !unnamed || pulled && !layer && i.Size <= maxManifest {
			all = append(all, i)
		}
		return nil
	}, only...)
	if err != nil {
		return nil, fmt.Errorf("list containerd's manifests: %w", err)
	}
	return all, nil
}

// Claiming implements snapshotter.Images.
func (c *Client) Claiming(
	ctx context.Context, in snapshotter.Scope, chain digest.Digest,
) iter.Seq2[snapshotter.Image, error] {
	ctx = namespaces.WithNamespace(ctx, in.Namespace)
	return func(yield func(snapshotter.Image, error) bool) {
		all, err := c.list(ctx)
		if err != nil {
			yield(snapshotter.Image{}, err)
			return
		}
		names := append(namesOf(all), in.Known...)
		manifests, err := c.manifests(ctx, in.Unnamed)
		if err != nil {
			yield(snapshotter.Image{}, err)
			return
		}
		slices.SortFunc(manifests, func(a, b content.Info) int {
			return b.UpdatedAt.Compare(a.UpdatedAt) // each pull updates where it came from
		})
		for _, info := range manifests {
			d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: info.Digest}
			doc, err := c.read(ctx, d)
			if errdefs.IsNotFound(err) || err == nil && !slices.Contains(doc.chains, chain) {
				continue
			}
			image := doc.image(info.Digest, nil)
			if err == nil {
				image.Refs, err = c.pulledFrom(info, names)
			}
			if !yield(image, err) {
				return
			}
		}
	}
}

// pulledFrom returns a reference, without tag, for each repository that a manifest was pulled from,
// of those whose registry's port is known, or likely to be the usual one (see locateAll).
func (c *Client) pulledFrom(manifest content.Info, names []string) ([]string, error) {
	var refs []string
	err := fmt.Errorf("containerd does not say where image %s was pulled from", manifest.Digest)
	for key, value := range manifest.Labels {
		host, ok := strings.CutPrefix(key, sourceLabel)
		if !ok || host == "" {
			continue
		}
		for repository := range strings.SplitSeq(value, ",") {
			found := c.locateAll(names, host, repository, true)
			if len(found) == 0 {
				err = fmt.Errorf("image %s of %s: %w", manifest.Digest, repository, portError(host))
			}
			refs = append(refs, found...)
		}
	}
	if len(refs) == 0 {
		return nil, err
	}
	return refs, nil
}

// sources returns a reference, without tag, for each repository that a manifest was pulled from.
// names are references of any images, which tell the registries' ports. Nil: not all are known.
func (c *Client) sources(
	ctx context.Context, manifest digest.Digest, names []string,
) ([]string, error) {
	info, err := c.content.Info(ctx, manifest)
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", manifest, err)
	}
	var refs []string
	for key, value := range info.Labels {
		host, ok := strings.CutPrefix(key, sourceLabel)
		if !ok {
			continue
		}
		if len(key)+len(value) > fullLabel {
			return nil, nil
		}
		for repository := range strings.SplitSeq(value, ",") {
			found := locators(names, host, repository)
			if len(found) == 0 {
				return nil, nil
			}
			refs = append(refs, found...)
		}
	}
	return refs, nil
}
