package containerd

import (
	"encoding/json"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/snapshotter"
)

// document is what a manifest says, with its config, or an index.
type document struct {
	layers   []ocispec.Descriptor // of a manifest: digests and sizes of blobs, lowest first
	chains   []digest.Digest      // of a manifest: chain IDs
	children []ocispec.Descriptor
}

// image is what a manifest says, with where it was pulled from.
func (d document) image(manifest digest.Digest, refs []string) snapshotter.Image {
	i := snapshotter.Image{Refs: refs, Manifest: manifest, Chains: d.chains}
	for _, l := range d.layers {
		i.Layers = append(i.Layers, l.Digest)
	}
	return i
}

// parseIndex returns what an index names; nothing of bytes that are none.
func parseIndex(b []byte) document {
	var x ocispec.Index
	if json.Unmarshal(b, &x) != nil {
		return document{}
	}
	return document{children: x.Manifests}
}

// parseManifest returns the config and the layers' blobs that a manifest names, digest and size of
// each; config is "" for bytes that are no manifest.
func parseManifest(b []byte) (config digest.Digest, layers []ocispec.Descriptor) {
	var m ocispec.Manifest
	if json.Unmarshal(b, &m) != nil || m.Config.Digest.Validate() != nil {
		return "", nil
	}
	for _, l := range m.Layers {
		if images.IsLayerType(l.MediaType) && l.Digest.Validate() == nil {
			layers = append(layers, ocispec.Descriptor{Digest: l.Digest, Size: l.Size})
		}
	}
	return m.Config.Digest, layers
}

// parseConfig returns what a config claims for the layers of its manifest. Where there are more or
// fewer of them than diffIDs, it is not known which blob makes which.
func parseConfig(b []byte, layers []ocispec.Descriptor) document {
	var config ocispec.Image
	if json.Unmarshal(b, &config) != nil {
		return document{}
	}
	doc := document{layers: layers, chains: identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs))}
	if len(layers) != len(doc.chains) {
		doc.layers = nil
	}
	return doc
}
