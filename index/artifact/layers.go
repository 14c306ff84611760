package artifact

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index"
)

// annotationLayers of the artifact's manifest holds the index's layers as JSON: a list of Layer.
const annotationLayers = "dev.mica.index.layers"

// MaxLayers bounds the list: 128 layers, more than images have, take 26 KB, and the list of
// referrers has to stay small.
const MaxLayers = 128

// maxLayerSize bounds what a layer may claim (1 EiB).
const maxLayerSize = 1 << 60

// Layer is what a node has to know of a layer in an index to promise it, before it has the index
// itself. A layer with directories that its tar implies but does not mention is not listed: how it
// looks depends on the layers below it.
type Layer struct {
	Digest digest.Digest `json:"digest"` // of the blob
	DiffID digest.Digest `json:"diffID"`
	Size   int64         `json:"size"`   // bytes of the uncompressed tar
	Inodes int64         `json:"inodes"` // of the tree
}

// Tell returns what is told of a layer with this index; false: nothing.
func Tell(x *index.Layer) (Layer, bool, error) {
	implicit, err := x.Implicit()
	h := x.Header()
	return Layer{Digest: h.Layer, DiffID: h.DiffID, Size: h.DeviceSize, Inodes: x.Inodes()}, len(implicit) == 0, err
}

// Layers returns the layers that an entry of a list of referrers says the index has; none where it
// does not say.
func Layers(d ocispec.Descriptor) ([]Layer, error) {
	value, ok := d.Annotations[annotationLayers]
	if !ok {
		return nil, nil
	}
	var list []Layer
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		return nil, fmt.Errorf("annotation %s of index %s: %w", annotationLayers, d.Digest, err)
	}
	if len(list) > MaxLayers {
		return nil, fmt.Errorf("annotation %s of index %s: %d layers, at most %d are accepted", annotationLayers, d.Digest, len(list), MaxLayers)
	}
	for _, l := range list {
		if l.Digest.Validate() != nil || l.DiffID.Validate() != nil || l.Size < 0 || l.Size > maxLayerSize || l.Inodes < 0 || l.Inodes > maxLayerSize {
			return nil, fmt.Errorf("annotation %s of index %s: layer %q, diffID %q, %d bytes, %d inodes", annotationLayers, d.Digest, l.Digest, l.DiffID, l.Size, l.Inodes)
		}
	}
	return list, nil
}
