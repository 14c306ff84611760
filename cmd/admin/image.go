package admin

import "github.com/opencontainers/go-digest"

// PathImage asks, with ?ref=, how micad would serve an image.
const PathImage = "/v1/image"

// Image is an image as micad finds it at its registry, by micad's own credentials and hosts.
type Image struct {
	Ref      string        `json:"ref"`
	Manifest digest.Digest `json:"manifest,omitempty"` // for this machine
	Layers   []ImageLayer  `json:"layers"`
	Index    digest.Digest `json:"index,omitempty"`   // "": none that can be used
	Profile  digest.Digest `json:"profile,omitempty"` // "": none
	Ranges   bool          `json:"ranges"`            // the registry sends a part of a layer
	// TrustsIndexes is false where micad takes no index from a registry.
	TrustsIndexes bool `json:"trusts_indexes"`
	// What failed: the way to the manifest, to an index, or to a part of a layer.
	Error      string `json:"error,omitempty"`
	IndexError string `json:"index_error,omitempty"`
	RangeError string `json:"range_error,omitempty"`
}

// ImageLayer is a layer of an image.
type ImageLayer struct {
	Layer     digest.Digest `json:"layer"`
	MediaType string        `json:"media_type"`
	Size      int64         `json:"size_bytes"` // compressed
	Indexed   bool          `json:"indexed"`
}
