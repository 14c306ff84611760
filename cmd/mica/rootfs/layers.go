// Package rootfs mounts an image's root filesystem without containerd: its layers, by a table of
// package fs, and an overlay of them.
package rootfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/remote"
)

// Image is an image at a registry, for one platform.
type Image struct {
	*remote.Image
	Manifest reach.Manifest
	Config   ocispec.ImageConfig
	Layers   []fs.Layer // what a table has to be asked for, lowest layer first
}

// Open reads what an image is made of.
func Open(ctx context.Context, c *remote.Client, name, platform string) (*Image, error) {
	ref, err := reach.Normalise(name)
	if err != nil {
		return nil, err
	}
	im, err := c.Image(ref)
	if err != nil {
		return nil, err
	}
	list, err := reach.Manifests(ctx, im, []string{platform})
	if err != nil {
		return nil, err
	}
	m := list[0]
	b, err := im.FetchBlob(ctx, m.Config, remote.MaxManifest)
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", ref, err)
	}
	diffIDs := config.RootFS.DiffIDs
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%s is damaged: its manifest names %d layers, its configuration %d",
			ref, len(m.Layers), len(diffIDs))
	}
	var digests []digest.Digest
	for _, l := range m.Layers {
		digests = append(digests, l.Digest)
	}
	out := &Image{Image: im, Manifest: m, Config: config.Config}
	for i := range digests {
		out.Layers = append(out.Layers, fs.Layer{Ref: ref, Manifest: m.Desc.Digest,
			Digest: digests[i], DiffID: diffIDs[i], Image: digests[i:]})
	}
	return out, nil
}

// Mount mounts layers, given lowest first, and returns them topmost first. unmount is to be
// called in any case.
func Mount(
	ctx context.Context, table *fs.Table, layers []fs.Layer,
) (below []fs.Below, unmount func() error, err error) {
	unmount = func() error {
		var errs []error
		for _, b := range below {
			errs = append(errs, table.Unmount(b.Digest))
		}
		return errors.Join(errs...)
	}
	for _, l := range layers {
		mounted, err := table.Mount(ctx, l, below)
		if err != nil {
			return below, unmount, err
		}
		below = append([]fs.Below{{Digest: l.Digest, Dir: mounted.Dir}}, below...)
		if mounted.DiffID != l.DiffID {
			return below, unmount, fmt.Errorf("layer %s: its index describes a tar of digest %s, "+
				"the image wants %s: do not trust this index", l.Digest, mounted.DiffID, l.DiffID)
		}
	}
	return below, unmount, nil
}
