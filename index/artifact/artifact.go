// Package artifact says how what Mica adds to an image lies in a registry or an OCI layout: as an
// OCI artifact whose subject is the image's manifest, so that it is found by the referrers API (or
// its fallback tag) and goes where the image goes.
//
// An artifact's manifest has its blobs as layers and an empty config. What a reader needs first
// stands in the manifest's annotations too: registries repeat annotations in the list of referrers,
// so a reader of that list can do without the manifest. A newer artifact stands beside the older
// ones of its type at a registry, which may not allow that they are removed: the newest is taken.
//
// Index is the artifact that is an index. Its blobs are the bundle's trees and the bundle's windows
// (package index), and the annotations have their digests and sizes. Another annotation tells of
// the layers (Layer), so that a node can promise them before it has the trees. The other artifact
// is a profile (package fs/profile/published).
package artifact

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is an image's repository, which has its artifacts too.
type Source interface {
	Manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
	// FetchBlob returns a blob, and an error where it is larger than limit bytes.
	FetchBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)
}

// Manifest returns the manifest of an artifact of a type, for the image manifest subject, made at
// the given time. Equal arguments give equal manifests. The time is added to annotations.
func Manifest(
	kind string, subject ocispec.Descriptor, created time.Time,
	annotations map[string]string, blobs ...ocispec.Descriptor,
) ocispec.Manifest {
	annotations[ocispec.AnnotationCreated] = created.UTC().Format(time.RFC3339Nano)
	return ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: kind,
		Config:       ocispec.DescriptorEmptyJSON,
		Layers:       blobs,
		Subject: &ocispec.Descriptor{
			MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size,
		},
		Annotations: annotations,
	}
}

// Of returns the artifacts of a type in a list of referrers, the one made last first.
func Of(kind string, list []ocispec.Descriptor) []ocispec.Descriptor {
	var found []ocispec.Descriptor
	for _, d := range list {
		if d.ArtifactType == kind {
			found = append(found, d)
		}
	}
	slices.SortFunc(found, func(a, b ocispec.Descriptor) int {
		// Of equals the greater digest, so that all nodes take the same.
		return cmp.Or(made(b).Compare(made(a)), cmp.Compare(b.Digest, a.Digest))
	})
	return found
}

// made returns when an artifact was made; zero if its annotations do not tell.
func made(d ocispec.Descriptor) time.Time {
	t, err := time.Parse(time.RFC3339Nano, d.Annotations[ocispec.AnnotationCreated])
	if err != nil {
		return time.Time{}
	}
	return t
}

// Now returns the time for an artifact that is made now beside these others of its type, which Of
// returned: it is after theirs, whatever the clocks of those who publish.
func Now(others []ocispec.Descriptor) time.Time {
	now := time.Now()
	if len(others) > 0 && !made(others[0]).Before(now) {
		return made(others[0]).Add(time.Millisecond)
	}
	return now
}

// Blob returns the first blob of a media type that an artifact's manifest names.
func Blob(manifest []byte, mediaType string, limit int64) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("parse artifact manifest: %w", err)
	}
	for _, l := range m.Layers {
		if l.MediaType == mediaType {
			return checked(ocispec.Descriptor{
				MediaType: mediaType, Digest: l.Digest, Size: l.Size,
			}, limit)
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf(
		"manifest of type %q has no blob of type %s", m.ArtifactType, mediaType)
}

// checked returns a descriptor that somebody else wrote, if it names a blob of at most limit bytes.
func checked(d ocispec.Descriptor, limit int64) (ocispec.Descriptor, error) {
	if err := d.Digest.Validate(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf(
			"blob %q of type %s: %w", d.Digest, d.MediaType, err)
	}
	if d.Size < 0 || d.Size > limit {
		return ocispec.Descriptor{}, fmt.Errorf(
			"blob %s of type %s: size %d is out of range", d.Digest, d.MediaType, d.Size)
	}
	return d, nil
}
