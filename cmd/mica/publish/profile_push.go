package publish

import (
	"bytes"
	"context"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
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
			im, m, err := f.registry.Find(ctx, args[0])
			if err != nil {
				return err
			}
			var p *profile.Profile
			if len(args) == 2 {
				p, err = readProfile(args[1])
			} else {
				p, err = f.load(ctx, m.Desc.Digest.String())
			}
			if err != nil {
				return err
			}
			return pushProfile(ctx, cmd.OutOrStdout(), im, m, p, merge)
		},
	}
	f.add(cmd)
	f.registry.AddImage(cmd)
	cmd.Flags().BoolVar(&merge, "merge", true,
		"merge with the profile that is published; false: replace it")
	return cmd
}

// pushProfile publishes a profile beside an image.
func pushProfile(
	ctx context.Context, w io.Writer, im reach.Image, m reach.Manifest, p *profile.Profile,
	merge bool,
) error {
	if p.Manifest != m.Desc.Digest {
		return fmt.Errorf("the profile is of manifest %s, and %s has %s: record this image, or "+
			"choose with --platform", p.Manifest, im.Ref(), m.Desc.Digest)
	}
	if len(p.Ranges) == 0 {
		return fmt.Errorf("the profile of %s is empty: it is not published", im.Ref())
	}
	list, err := im.Referrers(ctx, m.Desc.Digest, published.ArtifactType, artifact.Type)
	if err != nil {
		return err
	}
	others := artifact.Of(published.ArtifactType, list)
	var old *profile.Profile
	if len(others) > 0 && merge {
		if old, err = fetchProfile(ctx, im, m, others[0]); err != nil {
			return fmt.Errorf("%w; replace it with --merge=false", err)
		}
	}
	p = profile.Update(old, p)
	a, err := published.New(p, artifact.Now(others))
	if err != nil {
		return err
	}
	if err := addCopy(ctx, im, list, p, &a); err != nil {
		return err
	}
	blobs, copied := []blob{{a.Blob, bytes.NewReader(a.Content)}}, ""
	if len(a.Copied) > 0 {
		blobs = append(blobs, blob{a.Copy, bytes.NewReader(a.Copied)})
		copied = fmt.Sprintf(", and a copy of what a start reads %s", show.Bytes(a.Copy.Size))
	}
	if err := attach(ctx, im, m.Desc, a.Manifest(m.Desc), others, blobs...); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s: profile published: %d ranges, %s, from %d runs; it takes %s%s\n",
		im.Ref(), len(p.Ranges), show.Bytes(p.Bytes()), p.Runs,
		show.Bytes(int64(len(a.Content))), copied)
	return err
}

// addCopy adds to a profile a copy of what it names, if the image has an index among its referrers,
// whose spans these are.
func addCopy(
	ctx context.Context, im reach.Image, list []ocispec.Descriptor, p *profile.Profile,
	a *published.Artifact,
) error {
	list = artifact.Of(artifact.Type, list)
	if len(list) == 0 {
		return nil
	}
	x, b, err := artifact.Fetch(ctx, im, list[0], maxTrees)
	var spans []published.LayerSpan
	if err == nil {
		spans, err = published.Spans(p, b)
	}
	if err != nil {
		return fmt.Errorf("index of %s: %w; make it anew with `mica index create --push`", im.Ref(),
			err)
	}
	read := func(ctx context.Context, d ocispec.Descriptor, p []byte, off int64) error {
		return readAt(ctx, im, d, p, off)
	}
	frames, err := published.Compress(ctx, read, x.Windows, spans)
	if err != nil {
		return fmt.Errorf("copy what a start of %s reads: %w", im.Ref(), err)
	}
	return a.AddCopy(x.Trees.Digest, spans, frames)
}

// readAt fills p from a blob of an image, from off on.
func readAt(ctx context.Context, im reach.Image, d ocispec.Descriptor, p []byte, off int64) error {
	switch im := im.(type) {
	case *remote.Image:
		return im.Blob(d).ReadAt(ctx, p, off)
	case *layout.Image:
		return im.Blob(d).ReadAt(ctx, p, off)
	}
	return fmt.Errorf("%T has no ranges", im)
}

// fetchProfile returns the profile that an entry of the list of referrers stands for.
func fetchProfile(
	ctx context.Context, im reach.Image, m reach.Manifest, d ocispec.Descriptor,
) (*profile.Profile, error) {
	what := fmt.Sprintf("published profile %s of %s", d.Digest, im.Ref())
	content, err := published.Fetch(ctx, im, d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	p, err := profile.Decode(content, profile.Limits{Encoded: published.MaxBlob})
	if err == nil && p.Manifest != m.Desc.Digest {
		err = fmt.Errorf("it is of manifest %s", p.Manifest)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return p, nil
}
