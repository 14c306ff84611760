package published

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index"
)

// runtimeFiles are what containerd reads of an image itself when a container is created, before anything runs in it: it looks up
// the user whom the image's configuration names, and that user's groups.
var runtimeFiles = []string{"etc/passwd", "etc/group"}

// Runtime returns where in an image's blobs that lies which containerd reads of every image. Its index tells it, so that it can be
// fetched for images without a profile too. windows is the index's blob of windows.
func Runtime(b *index.Bundle, windows ocispec.Descriptor) ([]BlobRange, error) {
	missing := slices.Clone(runtimeFiles)
	var ranges []profile.Range
	for _, l := range slices.Backward(b.Layers()) { // the topmost layer that has a file counts
		if len(missing) == 0 {
			break
		}
		var file bytes.Buffer
		if err := b.Extract(l.Layer, &file); err != nil {
			return nil, err
		}
		x, err := index.Open(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			return nil, err
		}
		for _, path := range slices.Clone(missing) {
			found, ok, err := fileRanges(x, path)
			if err != nil {
				return nil, fmt.Errorf("%s in layer %s: %w", path, l.Layer, err)
			}
			if ok {
				ranges = append(ranges, found...)
				missing = slices.DeleteFunc(missing, func(p string) bool { return p == path })
			}
		}
	}
	return firstOf(ranges, b, windows)
}

// fileRanges returns where a layer has a file's content; ok: the layer has something of that name, even if it is no file.
func fileRanges(x *index.Layer, path string) (ranges []profile.Range, ok bool, err error) {
	tree := x.Tree()
	nid := tree.Root()
	for name := range strings.SplitSeq(path, "/") {
		ino, err := tree.Inode(nid)
		if err != nil || ino.Type() != index.Directory {
			return nil, true, err
		}
		if nid, err = tree.Lookup(nid, name); errors.Is(err, fs.ErrNotExist) {
			return nil, false, nil
		} else if err != nil {
			return nil, false, err
		}
	}
	ino, err := tree.Inode(nid)
	if err != nil || ino.Type() != index.Regular {
		return nil, true, err
	}
	err = tree.Extents(ino, 0, math.MaxInt64, func(e index.Extent) error {
		if e.Device != index.Hole && e.Data == nil {
			ranges = append(ranges, profile.Range{Layer: x.Header().Layer, Off: e.Device, Size: e.Size, Runs: 1})
		}
		return nil
	})
	return ranges, true, err
}
