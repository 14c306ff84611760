// Package artifact says how an index lies in a registry or an OCI layout: an
// OCI artifact whose subject is the image's manifest, so that it is found by
// the referrers API (or its fallback tag) and goes where the image goes.
//
// The artifact's manifest has two layers, the bundle's trees blob and its
// windows blob (package index), and an empty config. The same two descriptors stand in
// the manifest's annotations: registries repeat annotations in the list of referrers,
// so a reader of that list can fetch the trees blob without fetching the manifest first. Another annotation tells of
// the layers (Layer), so that a node can promise them before it has the trees.
package artifact

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
		Trees:   ocispec.Descriptor{MediaType: TreesMediaType, Digest: trees, Size: treesSize},
		Windows: ocispec.Descriptor{MediaType: WindowsMediaType, Digest: windows, Size: windowsSize},
	}
}

// Manifest returns the artifact's manifest for the image manifest subject, made at
// the given time. Equal arguments give equal manifests.
func (x Index) Manifest(subject ocispec.Descriptor, created time.Time) ocispec.Manifest {
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: Type,
		Config:       ocispec.DescriptorEmptyJSON,
		Layers:       []ocispec.Descriptor{x.Trees, x.Windows},
		Subject:      &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{
			ocispec.AnnotationCreated: created.UTC().Format(time.RFC3339Nano),
			annotationTreesDigest:     x.Trees.Digest.String(),
			annotationTreesSize:       strconv.FormatInt(x.Trees.Size, 10),
			annotationWindowsDigest:   x.Windows.Digest.String(),
			annotationWindowsSize:     strconv.FormatInt(x.Windows.Size, 10),
		},
	}
	if len(x.Layers) > 0 {
		b, _ := json.Marshal(x.Layers) // strings and numbers
		m.Annotations[annotationLayers] = string(b)
	}
	return m
}

// Indexes returns the indexes in a list of referrers, the one made last first: a newer index stands
// beside the older ones at a registry, which may not allow that they are removed.
func Indexes(list []ocispec.Descriptor) []ocispec.Descriptor {
	var found []ocispec.Descriptor
	for _, d := range list {
		if d.ArtifactType == Type {
			found = append(found, d)
		}
	}
	slices.SortFunc(found, func(a, b ocispec.Descriptor) int {
		// Of equals the greater digest, so that all nodes take the same.
		return cmp.Or(Made(b).Compare(Made(a)), cmp.Compare(b.Digest, a.Digest))
	})
	return found
}

// Made returns when an index was made; zero if its annotations do not tell.
func Made(d ocispec.Descriptor) time.Time {
	t, err := time.Parse(time.RFC3339Nano, d.Annotations[ocispec.AnnotationCreated])
	if err != nil {
		return time.Time{}
	}
	return t
}

// FromReferrer returns the index that an entry of a list of referrers
// describes. ok is false where the entry has no annotations of ours (a
// registry that drops them): its manifest has to be fetched and parsed.
func FromReferrer(d ocispec.Descriptor) (x Index, ok bool, err error) {
	if _, ok := d.Annotations[annotationTreesDigest]; !ok {
		return Index{}, false, nil
	}
	if x.Trees, err = annotated(d, TreesMediaType, annotationTreesDigest, annotationTreesSize); err != nil {
		return Index{}, true, err
	}
	if x.Windows, err = annotated(d, WindowsMediaType, annotationWindowsDigest, annotationWindowsSize); err != nil {
		return Index{}, true, err
	}
	return x, true, nil
}

func annotated(d ocispec.Descriptor, mediaType, digestKey, sizeKey string) (ocispec.Descriptor, error) {
	size, err := strconv.ParseInt(d.Annotations[sizeKey], 10, 64)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("annotation %s of index %s: %w", sizeKey, d.Digest, err)
	}
	return checked(ocispec.Descriptor{
		MediaType: mediaType,
		Digest:    digest.Digest(d.Annotations[digestKey]),
		Size:      size,
	})
}

// Parse returns the index that an artifact's manifest describes.
func Parse(manifest []byte) (Index, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return Index{}, fmt.Errorf("parse index manifest: %w", err)
	}
	var x Index
	for _, l := range m.Layers {
		var err error
		switch l.MediaType {
		case TreesMediaType:
			x.Trees, err = checked(l)
		case WindowsMediaType:
			x.Windows, err = checked(l)
		}
		if err != nil {
			return Index{}, err
		}
	}
	if x.Trees.Digest == "" || x.Windows.Digest == "" {
		return Index{}, fmt.Errorf("manifest of type %q has no trees and windows blobs: not an index of mica", m.ArtifactType)
	}
	return x, nil
}

func checked(d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := d.Digest.Validate(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("blob %q of index: %w", d.Digest, err)
	}
	if d.Size < 0 || d.Size > maxBlobSize {
		return ocispec.Descriptor{}, fmt.Errorf("blob %s of index: size %d is out of range", d.Digest, d.Size)
	}
	return d, nil
}
