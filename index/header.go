package index

import "github.com/opencontainers/go-digest"

// Header names the layer that an index describes.
type Header struct {
	Layer       digest.Digest // of the blob, compressed as it is
	LayerSize   int64         // bytes of the blob
	DiffID      digest.Digest // of the device: the uncompressed tar
	DeviceSize  int64         // bytes of the device
	WindowsSize int64         // bytes of the layer's windows section, which lies apart
}
