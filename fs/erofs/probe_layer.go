package erofs

import (
	"crypto/sha256"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// tinyDraft describes a layer of one file, of size bytes, whose content begins at
// the device's second block.
func tinyDraft(device []byte, size int64) *index.Draft {
	n, sum := int64(len(device)), sha256.Sum256(device)
	id := digest.FromBytes(device)
	epoch := time.Unix(0, 0)
	return &index.Draft{
		Header: index.Header{Layer: id, LayerSize: n, DiffID: id, DeviceSize: n},
		Root: &erofs.Node{Mode: unix.S_IFDIR | 0o755, Mtime: epoch, Children: map[string]*erofs.Node{
			probeFile: {
				Mode: unix.S_IFREG | 0o644, Mtime: epoch, Size: size,
				Extents: []erofs.Extent{{Device: erofs.BlockSize, Size: size}},
			},
		}},
		Spans: []index.Span{{Size: n, BlobSize: n, Codec: index.Stored, Digest: sum}},
	}
}
