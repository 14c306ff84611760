// Package published says how a profile lies in a registry or an OCI layout: an OCI artifact whose
// subject is the image's manifest, as an index is (package index/artifact).
//
// The artifact's manifest has a layer, the encoded profile (package profile), and an empty config.
// A profile of at most MaxInline bytes also stands in an annotation of the manifest, in base64:
// registries repeat annotations in the list of referrers, so a reader of that list has the profile
// with it and needs no further request. A second layer can be a copy of what the profile names,
// from which few requests bring it while the index is still on its way; another annotation says
// what lies where in it.
package published

import (
	"context"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index/artifact"
)

// ArtifactType is the type of the artifact. Its one blob has the same media type,
// profile.MediaType.
const ArtifactType = profile.MediaType

// annotationContent holds the encoded profile in base64 (RFC 4648, with padding).
const annotationContent = "dev.mica.profile.v1"

const (
	// MaxInline is the most bytes of an encoded profile that stand in the annotation; with base64
	// they take 64 KiB. Registries take manifests of 4 MiB, and lists of referrers hold several.
	MaxInline = 48 << 10
	// MaxBlob bounds the blob, bytes. It is profile.Limits' default.
	MaxBlob = 4 << 20
)

// Artifact is an encoded profile on its way to a registry.
type Artifact struct {
	Blob    ocispec.Descriptor // of Content
	Content []byte
	Copy    ocispec.Descriptor // of Copied
	Copied  []byte             // what a start reads, see AddCopy; empty: there is no copy
	created time.Time
	copied  string // annotationCopy
}

// New encodes a profile that was made at the given time.
func New(p *profile.Profile, created time.Time) (Artifact, error) {
	b, err := p.Encode()
	if err != nil {
		return Artifact{}, err
	}
	if len(b) > MaxBlob {
		return Artifact{}, fmt.Errorf("profile of %d bytes, at most %d are published", len(b),
			MaxBlob)
	}
	return Artifact{
		Blob: ocispec.Descriptor{MediaType: profile.MediaType, Digest: digest.FromBytes(b),
			Size: int64(len(b))},
		Content: b,
		created: created,
	}, nil
}

// Manifest returns the artifact's manifest for the image manifest subject. Equal arguments give
// equal manifests.
func (a Artifact) Manifest(subject ocispec.Descriptor) ocispec.Manifest {
	annotations := map[string]string{}
	blobs := []ocispec.Descriptor{a.Blob}
	if len(a.Content) <= MaxInline {
		annotations[annotationContent] = base64.StdEncoding.EncodeToString(a.Content)
	}
	if a.Copy.Size > 0 {
		annotations[annotationCopy] = a.copied
		blobs = append(blobs, a.Copy)
	}
	return artifact.Manifest(ArtifactType, subject, a.created, annotations, blobs...)
}

// Newest returns the profile artifact of a list of referrers that was made last.
func Newest(list []ocispec.Descriptor) (newest ocispec.Descriptor, ok bool) {
	if list = artifact.Of(ArtifactType, list); len(list) == 0 {
		return ocispec.Descriptor{}, false
	}
	return list[0], true
}

// FromReferrer returns the encoded profile that stands in an entry of a list of referrers, to be
// decoded with profile.Decode. ok is false where none stands there: the profile is too large, or
// the registry drops annotations.
func FromReferrer(d ocispec.Descriptor) (content []byte, ok bool, err error) {
	text, ok := d.Annotations[annotationContent]
	if !ok {
		return nil, false, nil
	}
	if n := base64.StdEncoding.EncodedLen(MaxInline); len(text) > n {
		return nil, true, fmt.Errorf("annotation %s of %s: %d characters, at most %d wanted",
			annotationContent, d.Digest, len(text), n)
	}
	if content, err = base64.StdEncoding.DecodeString(text); err != nil {
		return nil, true, fmt.Errorf("annotation %s of %s: %w", annotationContent, d.Digest, err)
	}
	return content, true, nil
}

// Fetch returns the encoded profile that an entry of a list of referrers stands for. Where the
// entry does not have it, the artifact's manifest is fetched, and the blob that it names.
func Fetch(
	ctx context.Context, from artifact.Source, d ocispec.Descriptor,
) ([]byte, error) {
	if content, ok, err := FromReferrer(d); ok || err != nil {
		return content, err
	}
	m, err := from.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	blob, err := artifact.Blob(m, profile.MediaType, MaxBlob)
	if err != nil {
		return nil, err
	}
	return from.FetchBlob(ctx, blob, MaxBlob)
}
