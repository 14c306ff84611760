package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/remote"
	"github.com/mica-snapshotter/mica/remote/layout"
)

func profilePushCommand() *cobra.Command {
	var f profileFlags
	var merge bool
	cmd := &cobra.Command{
		Use:   "push [flags] REF|DIR[:NAME] [FILE]",
		Short: "Publish a profile beside its image",
		Long: `Stores the profile that this node has of an image, or that is in FILE, beside the
image, where every micad finds it. It is merged with the one published before.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			im, m, err := f.image(ctx, args[0])
			if err != nil {
				return err
			}
			var p *profile.Profile
			if len(args) == 2 {
				p, err = readProfile(args[1])
			} else {
				p, err = f.load(ctx, m.desc.Digest.String())
			}
			if err != nil {
				return err
			}
			return pushProfile(ctx, cmd.OutOrStdout(), im, m, p, merge)
		},
	}
	f.add(cmd)
	f.addImage(cmd)
	cmd.Flags().BoolVar(&merge, "merge", true, "merge with the profile that is published; false: replace it")
	return cmd
}

// pushProfile publishes a profile beside an image.
func pushProfile(ctx context.Context, w io.Writer, im image, m imageManifest, p *profile.Profile, merge bool) error {
	if p.Manifest != m.desc.Digest {
		return fmt.Errorf("the profile is of manifest %s, and %s has %s: record this image, or choose with --platform", p.Manifest, im.Ref(), m.desc.Digest)
	}
	if len(p.Ranges) == 0 {
		return fmt.Errorf("the profile of %s is empty: it is not published", im.Ref())
	}
	list, err := im.Referrers(ctx, m.desc.Digest, "") // profiles, and the index
	if err != nil {
		return err
	}
	// The new one has to be the newest, whatever the clocks of those who publish.
	created := time.Now()
	var old *profile.Profile
	if d, ok := published.Newest(list); ok {
		if t := published.Created(d); !t.Before(created) {
			created = t.Add(time.Millisecond)
		}
		if merge {
			if old, err = fetchProfile(ctx, im, m, d); err != nil {
				return fmt.Errorf("%w; replace it with --merge=false", err)
			}
		}
	}
	p = profile.Update(old, p)
	a, err := published.New(p, created)
	if err != nil {
		return err
	}
	if err := addEarly(ctx, im, list, p, &a); err != nil {
		return err
	}
	if err := im.PushBlob(ctx, a.Blob, bytes.NewReader(a.Content)); err != nil {
		return err
	}
	if len(a.Copied) > 0 {
		if err := im.PushBlob(ctx, a.Copy, bytes.NewReader(a.Copied)); err != nil {
			return err
		}
	}
	if err := im.PushBlob(ctx, ocispec.DescriptorEmptyJSON, bytes.NewReader(ocispec.DescriptorEmptyJSON.Data)); err != nil {
		return err
	}
	if _, err := im.PushReferrer(ctx, m.desc, a.Manifest(m.desc)); err != nil {
		return err
	}
	copied := ""
	if a.Copy.Size > 0 {
		copied = fmt.Sprintf(", and a copy of what a start reads first %s", bytesText(a.Copy.Size))
	}
	_, err = fmt.Fprintf(w, "%s: profile published: %d ranges, %s, from %d runs; it takes %s%s\n", im.Ref(), len(p.Ranges), bytesText(p.Bytes()), p.Runs,
		bytesText(int64(len(a.Content))), copied)
	return err
}

// addEarly adds to a profile where in the blobs its first ranges lie, if the image has an index among its referrers, which
// tells it.
func addEarly(ctx context.Context, im image, list []ocispec.Descriptor, p *profile.Profile, a *published.Artifact) error {
	list = artifact.Indexes(list)
	if len(list) == 0 {
		return nil
	}
	x, b, err := fetchIndex(ctx, im, list[0])
	var ranges []published.BlobRange
	if err == nil {
		ranges, err = published.First(p, b, x.Windows, published.MaxCopy)
	}
	if err != nil {
		return fmt.Errorf("index of %s: %w; make it anew with `mica index create --push`", im.Ref(), err)
	}
	copied, err := readRanges(ctx, im, ranges)
	if err != nil {
		return err
	}
	return a.Early(ranges, copied)
}

// readRequests is how many ranges are read at a time.
const readRequests = 4

// readRanges returns the bytes of ranges of an image's blobs, one behind the other.
func readRanges(ctx context.Context, im image, ranges []published.BlobRange) ([]byte, error) {
	size := int64(0)
	for _, r := range ranges {
		size += r.Size
	}
	all := make([]byte, size)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readRequests)
	rest := all
	for _, r := range ranges {
		p := rest[:r.Size]
		rest = rest[r.Size:]
		g.Go(func() error {
			if err := readRange(ctx, im, r, p); err != nil {
				return fmt.Errorf("read [%d, +%d) of blob %s of %s: %w", r.Off, r.Size, r.Blob, im.Ref(), err)
			}
			return nil
		})
	}
	return all, g.Wait()
}

// readRange fills p, of the range's size.
func readRange(ctx context.Context, im image, r published.BlobRange, p []byte) error {
	d := ocispec.Descriptor{Digest: r.Blob, Size: r.BlobSize}
	switch im := im.(type) {
	case *remote.Image:
		return im.Blob(d).ReadAt(ctx, p, r.Off)
	case *layout.Image:
		return im.Blob(d).ReadAt(ctx, p, r.Off)
	}
	return fmt.Errorf("%T has no ranges", im)
}

// fetchProfile returns the profile that an entry of the list of referrers stands for.
func fetchProfile(ctx context.Context, im image, m imageManifest, d ocispec.Descriptor) (*profile.Profile, error) {
	what := fmt.Sprintf("published profile %s of %s", d.Digest, im.Ref())
	content, ok, err := published.FromReferrer(d)
	if err == nil && !ok {
		content, err = fetchProfileBlob(ctx, im, d)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	p, err := profile.Decode(content, profile.Limits{Encoded: published.MaxBlob})
	if err == nil && p.Manifest != m.desc.Digest {
		err = fmt.Errorf("it is of manifest %s", p.Manifest)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return p, nil
}

func fetchProfileBlob(ctx context.Context, im image, d ocispec.Descriptor) ([]byte, error) {
	b, err := im.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	blob, err := published.Parse(b)
	if err != nil {
		return nil, err
	}
	return im.FetchBlob(ctx, blob, published.MaxBlob)
}
