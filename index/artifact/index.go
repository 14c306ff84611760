package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index/bundle"
)

// Media types of the artifact and its two blobs.
const (
	Type             = "application/vnd.mica.index.v1"
	TreesMediaType   = "application/vnd.mica.index.trees.v1"
	WindowsMediaType = "application/vnd.mica.index.windows.v1"
)

// Annotations of the artifact's manifest: digest and decimal size of its blobs.
const (
	annotationTreesDigest   = "dev.mica.index.trees.digest"
	annotationTreesSize     = "dev.mica.index.trees.size"
	annotationWindowsDigest = "dev.mica.index.windows.digest"
	annotationWindowsSize   = "dev.mica.index.windows.size"
)

// maxBlobSize bounds what a descriptor may claim (1 TiB): larger numbers are
// damage, not indexes.
const maxBlobSize = 1 << 40

// Index names the two blobs of an index.
type Index struct {
	Trees, Windows ocispec.Descriptor
	Layers         []Layer // for Manifest, MaxLayers at most; readers use the function Layers
}

// New returns the index of a trees blob and a windows blob of the given digests
// and sizes in bytes.
func New(trees digest.Digest, treesSize int64, windows digest.Digest, windowsSize int64) Index {
	return Index{
		Trees: ocispec.Descriptor{MediaType: TreesMediaType, Digest: trees, Size: treesSize},
		Windows: ocispec.Descriptor{
			MediaType: WindowsMediaType, Digest: windows, Size: windowsSize,
		},
	}
}

// Manifest returns the artifact's manifest for the image manifest subject, made at
// the given time. Equal arguments give equal manifests.
func (x Index) Manifest(subject ocispec.Descriptor, created time.Time) ocispec.Manifest {
	annotations := map[string]string{
		annotationTreesDigest:   x.Trees.Digest.String(),
		annotationTreesSize:     strconv.FormatInt(x.Trees.Size, 10),
		annotationWindowsDigest: x.Windows.Digest.String(),
		annotationWindowsSize:   strconv.FormatInt(x.Windows.Size, 10),
	}
	if len(x.Layers) > 0 {
		b, _ := json.Marshal(x.Layers) // strings and numbers
		annotations[annotationLayers] = string(b)
	}
	return Manifest(Type, subject, created, annotations, x.Trees, x.Windows)
}

// FromReferrer returns the index that an entry of a list of referrers
// describes. ok is false where the entry has no annotations of ours (a
// registry that drops them): its manifest has to be fetched and parsed.
func FromReferrer(d ocispec.Descriptor) (x Index, ok bool, err error) {
	if _, ok := d.Annotations[annotationTreesDigest]; !ok {
		return Index{}, false, nil
	}
	x.Trees, err = annotated(d, TreesMediaType, annotationTreesDigest, annotationTreesSize)
	if err != nil {
		return Index{}, true, err
	}
	x.Windows, err = annotated(d, WindowsMediaType, annotationWindowsDigest, annotationWindowsSize)
	if err != nil {
		return Index{}, true, err
	}
	return x, true, nil
}

func annotated(
	d ocispec.Descriptor, mediaType, digestKey, sizeKey string,
) (ocispec.Descriptor, error) {
	size, err := strconv.ParseInt(d.Annotations[sizeKey], 10, 64)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf(
			"annotation %s of index %s: %w", sizeKey, d.Digest, err)
	}
	return checked(ocispec.Descriptor{
		MediaType: mediaType,
		Digest:    digest.Digest(d.Annotations[digestKey]),
		Size:      size,
	}, maxBlobSize)
}

// Parse returns the index that an artifact's manifest describes.
func Parse(manifest []byte) (x Index, err error) {
	if x.Trees, err = Blob(manifest, TreesMediaType, maxBlobSize); err != nil {
		return Index{}, err
	}
	if x.Windows, err = Blob(manifest, WindowsMediaType, maxBlobSize); err != nil {
		return Index{}, err
	}
	return x, nil
}

// Find returns the index that an entry of a list of referrers stands for. Where the entry does not
// tell, its manifest is fetched.
func Find(ctx context.Context, from Source, d ocispec.Descriptor) (Index, error) {
	if x, ok, err := FromReferrer(d); ok || err != nil {
		return x, err
	}
	m, err := from.Manifest(ctx, d)
	if err != nil {
		return Index{}, err
	}
	return Parse(m)
}

// Fetch returns the index that Find does, with its trees, of at most limit bytes, in memory.
func Fetch(
	ctx context.Context, from Source, d ocispec.Descriptor, limit int64,
) (Index, *bundle.Bundle, error) {
	x, err := Find(ctx, from, d)
	if err != nil {
		return x, nil, err
	}
	trees, err := from.FetchBlob(ctx, x.Trees, limit)
	if err != nil {
		return x, nil, err
	}
	b, err := bundle.Open(bytes.NewReader(trees), int64(len(trees)), bundle.Limits{})
	return x, b, err
}
