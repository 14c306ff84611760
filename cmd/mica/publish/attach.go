package publish

import (
	"context"
	"io"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
)

// blob is a part of an artifact.
type blob struct {
	ocispec.Descriptor
	content io.ReadSeeker
}

// attach stores an artifact beside an image, in the place of the old ones.
func attach(
	ctx context.Context, im reach.Image, subject ocispec.Descriptor, m ocispec.Manifest,
	old []ocispec.Descriptor, blobs ...blob,
) error {
	empty := ocispec.DescriptorEmptyJSON
	for _, b := range append(blobs, blob{empty, strings.NewReader(string(empty.Data))}) {
		if err := im.PushBlob(ctx, b.Descriptor, b.content); err != nil {
			return err
		}
	}
	_, err := im.PushReferrer(ctx, subject, m, old...)
	return err
}
