package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/remote"
)

const (
	// imageTime bounds what a registry is asked of one image: less than package admin waits.
	imageTime = 15 * time.Second
	// maxTrees bounds the trees blob that image keeps in memory, bytes.
	maxTrees = 64 << 20
)

// image asks the registry of an image what a pull would. Nothing of it is kept or counted against
// the registry.
func (d *daemon) image(ctx context.Context, ref string) admin.Image {
	ctx, cancel := context.WithTimeout(ctx, imageTime)
	defer cancel()
	out := admin.Image{Ref: ref, TrustsIndexes: d.config.Index.Trust != "local"}
	im, err := d.client.Image(ref)
	var m ocispec.Manifest
	if err == nil {
		m, err = manifestHere(ctx, im, &out)
	}
	if err != nil {
		out.Error = err.Error()
		return out
	}
	b, err := indexOf(ctx, im, &out)
	if err != nil {
		out.IndexError = err.Error()
	}
	for _, l := range m.Layers {
		indexed := b != nil && slices.ContainsFunc(b.Layers(), func(r bundle.Record) bool {
			return r.Layer == l.Digest
		})
		out.Layers = append(out.Layers, admin.ImageLayer{
			Layer: l.Digest, MediaType: l.MediaType, Size: l.Size, Indexed: indexed,
		})
	}
	// Of the smallest layer: a registry that sends no part of it sends it whole.
	smallest := slices.MinFunc(m.Layers, func(a, b ocispec.Descriptor) int {
		return cmp.Compare(a.Size, b.Size)
	})
	blob := im.Blob(smallest).Aside()
	if err := blob.ReadAt(ctx, make([]byte, 1), max(smallest.Size-1, 0)); err != nil {
		out.RangeError = err.Error()
	}
	out.Ranges = blob.Ranged()
	return out
}

// manifestHere returns the manifest of an image that fits this machine best.
func manifestHere(
	ctx context.Context, im *remote.Image, out *admin.Image,
) (m ocispec.Manifest, err error) {
	at, err := im.Resolve(ctx)
	if err != nil {
		return m, err
	}
	b, err := im.Manifest(ctx, at)
	if err == nil && images.IsIndexType(at.MediaType) {
		var index ocispec.Index
		if err := json.Unmarshal(b, &index); err != nil {
			return m, fmt.Errorf("index %s: %w", at.Digest, err)
		}
		here := platforms.Default()
		fit := slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return d.Platform == nil || !here.Match(*d.Platform)
		})
		if len(fit) == 0 {
			return m, fmt.Errorf("%s has no image for %s", out.Ref, platforms.DefaultString())
		}
		slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
			if here.Less(*a.Platform, *b.Platform) {
				return -1
			}
			return 1
		})
		at = fit[0]
		b, err = im.Manifest(ctx, at)
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err == nil && len(m.Layers) == 0 {
		err = errors.New("it has no layers: it is not a container image")
	}
	out.Manifest = at.Digest
	return m, err
}

// indexOf returns the newest index of the image; nil: there is none.
func indexOf(
	ctx context.Context, im *remote.Image, out *admin.Image,
) (*bundle.Bundle, error) {
	refs, err := im.Referrers(ctx, out.Manifest, artifact.Type, published.ArtifactType)
	if err != nil {
		return nil, err
	}
	if d, ok := published.Newest(refs); ok {
		out.Profile = d.Digest
	}
	indexes := artifact.Of(artifact.Type, refs)
	if len(indexes) == 0 {
		return nil, nil
	}
	_, b, err := artifact.Fetch(ctx, im, indexes[0], maxTrees)
	if err == nil {
		out.Index = indexes[0].Digest
	}
	return b, err
}
