package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/integration/shaper"
	"github.com/mica-snapshotter/mica/remote"
)

// maxBlob bounds the trees blob that is read here; the images are known.
const maxBlob = 256 << 20

// bound is B, about what no snapshotter can beat: containerd's own fixed cost
// (the total of a start of an image that is complete on the node, pull again
// and cold page cache included), three round trips, and the profile's
// compressed bytes at the network's bandwidth. Seconds.
func bound(fixed float64, p shaper.Profile, profileBytes int64) float64 {
	return fixed + 3*p.RTT.Seconds() + float64(profileBytes)/p.Rate
}

// profileSize returns how many bytes the profile beside an image names, and how
// many compressed bytes hold them: the blob ranges of all spans that they touch.
func (l *lab) profileSize(ctx context.Context, ref string) (read, compressed int64, err error) {
	im, err := l.client.Image(ref)
	if err != nil {
		return 0, 0, err
	}
	desc, err := im.Resolve(ctx)
	if err != nil {
		return 0, 0, err
	}
	list, err := artifacts(ctx, im, desc.Digest)
	if err != nil {
		return 0, 0, err
	}
	p, err := readProfile(ctx, im, list)
	if err != nil {
		return 0, 0, err
	}
	indexes, err := readBundle(ctx, im, list)
	if err != nil {
		return 0, 0, err
	}
	ranges := map[digest.Digest][]profile.Range{}
	for _, r := range p.Ranges {
		ranges[r.Layer] = append(ranges[r.Layer], r)
	}
	for layer, rs := range ranges {
		spans, err := indexes.Spans(layer)
		if err != nil {
			return 0, 0, err
		}
		compressed += touched(spans, rs)
	}
	return p.Bytes(), compressed, nil
}

// touched is the sum of the blob bytes of the spans that the ranges touch.
func touched(spans index.Spans, ranges []profile.Range) int64 {
	seen := map[int]bool{}
	var n int64
	for _, r := range ranges {
		for i := spans.Find(r.Off); i >= 0 && i < len(spans) && spans[i].Device < r.End(); i++ {
			if !seen[i] {
				seen[i] = true
				n += spans[i].BlobSize
			}
		}
	}
	return n
}

// artifacts lists the indexes and profiles of a manifest.
func artifacts(ctx context.Context, im *remote.Image, subject digest.Digest) ([]ocispec.Descriptor, error) {
	var all []ocispec.Descriptor
	for _, t := range []string{artifact.Type, published.ArtifactType} {
		list, err := im.Referrers(ctx, subject, t)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

func readProfile(ctx context.Context, im *remote.Image, list []ocispec.Descriptor) (*profile.Profile, error) {
	d, ok := published.Newest(list)
	if !ok {
		return nil, errors.New("no profile")
	}
	b, err := published.Fetch(ctx, im, d)
	if err != nil {
		return nil, err
	}
	return profile.Decode(b, profile.Limits{})
}

func readBundle(ctx context.Context, im *remote.Image, list []ocispec.Descriptor) (*bundle.Bundle, error) {
	if list = artifact.Of(artifact.Type, list); len(list) == 0 {
		return nil, errors.New("no index")
	}
	_, b, err := artifact.Fetch(ctx, im, list[0], maxBlob)
	return b, err
}

// manifest reads an image's or an artifact's manifest.
func manifest(ctx context.Context, im *remote.Image, d ocispec.Descriptor) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	b, err := im.Manifest(ctx, d)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	return m, nil
}
