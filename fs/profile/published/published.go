// Package published says how a profile lies in a registry or an OCI layout: an OCI artifact whose subject is the
// image's manifest, as an index is (package index/artifact).
//
// The artifact's manifest has a layer, the encoded profile (package profile), and an empty config. A profile of at
// most MaxInline bytes also stands in an annotation of the manifest, in base64: registries repeat annotations in the list of
// referrers, so a reader of that list has the profile with it and needs no further request. A second layer can be a copy of what the
// profile names, from which few requests bring it while the index is still on its way; another annotation says what lies where in it.
//
// A newer profile stands beside older ones until these are deleted, which a registry may not allow:
// a reader takes Newest.
package published

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile"
)

// ArtifactType is the type of the artifact. Its one blob has the same media type, profile.MediaType.
const ArtifactType = profile.MediaType

// annotationContent holds the encoded profile in base64 (RFC 4648, with padding).
const annotationContent = "dev.mica.profile.v1"

const (
	// MaxInline is the most bytes of an encoded profile that stand in the annotation; with base64 they take 64 KiB.
	// Registries take manifests of 4 MiB, and lists of referrers hold several.
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
		return Artifact{}, fmt.Errorf("profile of %d bytes, at most %d are published", len(b), MaxBlob)
	}
	return Artifact{
		Blob:    ocispec.Descriptor{MediaType: profile.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))},
		Content: b,
		created: created,
	}, nil
}

// Manifest returns the artifact's manifest for the image manifest subject. Equal arguments give equal manifests.
func (a Artifact) Manifest(subject ocispec.Descriptor) ocispec.Manifest {
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType,
		Config:       ocispec.DescriptorEmptyJSON,
		Layers:       []ocispec.Descriptor{a.Blob},
		Subject:      &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations:  map[string]string{ocispec.AnnotationCreated: a.created.UTC().Format(time.RFC3339Nano)},
	}
	if len(a.Content) <= MaxInline {
		m.Annotations[annotationContent] = base64.StdEncoding.EncodeToString(a.Content)
	}
	if a.Copy.Size > 0 {
		m.Annotations[annotationCopy] = a.copied
		m.Layers = append(m.Layers, a.Copy)
	}
	return m
}

// Created returns when the profile of an entry of a list of referrers was made, by its annotation; zero if that is not told.
func Created(d ocispec.Descriptor) time.Time {
	t, err := time.Parse(time.RFC3339Nano, d.Annotations[ocispec.AnnotationCreated])
	if err != nil {
		return time.Time{}
	}
	return t
}

// Newest returns the profile artifact of a list of referrers that was made last. Those without a time count as the
// oldest; of equals the one with the greatest digest is taken, so that all nodes take the same.
func Newest(list []ocispec.Descriptor) (newest ocispec.Descriptor, ok bool) {
	for _, d := range list {
		if d.ArtifactType != ArtifactType {
			continue
		}
		c := Created(d).Compare(Created(newest))
		if !ok || c > 0 || c == 0 && d.Digest > newest.Digest {
			newest, ok = d, true
		}
	}
	return newest, ok
}

// FromReferrer returns the encoded profile that stands in an entry of a list of referrers, to be decoded with profile.Decode.
// ok is false where none stands there: the profile is too large, or the registry drops annotations. Then the artifact's manifest has to be
// fetched and parsed.
func FromReferrer(d ocispec.Descriptor) (content []byte, ok bool, err error) {
	text, ok := d.Annotations[annotationContent]
	if !ok {
		return nil, false, nil
	}
	if n := base64.StdEncoding.EncodedLen(MaxInline); len(text) > n {
		return nil, true, fmt.Errorf("annotation %s of %s: %d characters, at most %d wanted", annotationContent, d.Digest, len(text), n)
	}
	if content, err = base64.StdEncoding.DecodeString(text); err != nil {
		return nil, true, fmt.Errorf("annotation %s of %s: %w", annotationContent, d.Digest, err)
	}
	return content, true, nil
}

// Parse returns the descriptor of the blob with the encoded profile, of at most MaxBlob bytes, that an artifact's manifest names.
func Parse(manifest []byte) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("parse profile manifest: %w", err)
	}
	for _, l := range m.Layers {
		if l.MediaType != profile.MediaType {
			continue
		}
		if err := l.Digest.Validate(); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("blob %q of profile: %w", l.Digest, err)
		}
		if l.Size < 0 || l.Size > MaxBlob {
			return ocispec.Descriptor{}, fmt.Errorf("blob %s of profile: size %d is out of range", l.Digest, l.Size)
		}
		return ocispec.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}, nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("manifest of type %q has no profile blob: not a profile of mica", m.ArtifactType)
}
