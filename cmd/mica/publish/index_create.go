// Package publish is the commands that make what lies beside an image, and store it there: its
// index, and the profile of its start.
package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/targz"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
	"github.com/mica-snapshotter/mica/remote/layout"
)

// indexCreate is one run of `mica index create`.
type indexCreate struct {
	talk
	registry  reach.Registry
	push      bool
	output    string
	platforms []string
	all       bool // platforms
	timeout   time.Duration
	spanSize  string
	span      int64            // spanSize in bytes
	from      string           // file with a profile
	profile   *profile.Profile // in it; nil: there is none, or it is published
}

// IndexCommand returns `mica index`.
func IndexCommand() *cobra.Command {
	cmd := show.Group(&cobra.Command{Use: "index", Short: "Make and inspect indexes of images"})
	cmd.AddCommand(indexCreateCommand(), indexInspectCommand())
	return cmd
}

func indexCreateCommand() *cobra.Command {
	c := &indexCreate{}
	cmd := &cobra.Command{
		Use:   "create [flags] REF|DIR[:NAME]",
		Short: "Make the index of an image",
		Long: `Reads the layers of an image, at a registry or in the folder of an OCI layout,
and makes the index with which Mica starts containers before the layers arrive.
The image itself is not changed.

Ends with 0: made, or there already; 1: failed; 2: wrong usage; 3: of an image no
layer can be indexed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.begin(cmd); err != nil {
				return err
			}
			if err := c.check(cmd.Flags().Changed("platform")); err != nil {
				return show.WithCode(show.Usage, err)
			}
			return c.run(cmd.Context(), args[0])
		},
	}
	c.add(cmd)
	cmd.Flags().BoolVar(&c.push, "push", false,
		"store the index beside the image, where micad finds it")
	cmd.Flags().StringVarP(&c.output, "output", "o", "",
		"write the index to a file, or into a folder as an OCI layout")
	cmd.Flags().StringSliceVar(&c.platforms, "platform",
		[]string{platforms.Format(platforms.DefaultSpec())}, "platforms of a multi-platform image")
	cmd.Flags().BoolVar(&c.all, "all-platforms", false,
		"all platforms of a multi-platform image that run Linux")
	cmd.Flags().DurationVar(&c.timeout, "timeout", 0, "how long all may take; 0: as it takes")
	cmd.Flags().StringVar(&c.spanSize, "span-size", units.BytesSize(targz.DefaultSpanSize),
		"how much is fetched at the least, uncompressed, 64KiB to 4MiB: smaller makes a larger index")
	cmd.Flags().StringVar(&c.from, "profile", "",
		"with --push: publish the profile in this file beside the index, as mica profile push does")
	c.registry.Add(cmd)
	return cmd
}

// check finds what makes no sense among the flags. named: --platform is given.
func (c *indexCreate) check(named bool) (err error) {
	switch {
	case !c.push && c.output == "":
		return errors.New("nowhere to put the index: give --push to store it beside the image, " +
			"or -o FILE")
	case c.from != "" && !c.push:
		return errors.New("--profile publishes beside an index that is published: give --push")
	case c.all && named:
		return errors.New("--all-platforms and --platform exclude each other")
	case c.all:
		c.platforms = nil
	}
	if c.span, err = units.RAMInBytes(c.spanSize); err != nil {
		return fmt.Errorf("--span-size %q: %w", c.spanSize, err)
	}
	if c.span < targz.MinSpanSize || c.span > targz.MaxSpanSize {
		return fmt.Errorf("--span-size %s: it is 64KiB at least, and 4MiB at most", c.spanSize)
	}
	return nil
}

func (c *indexCreate) run(ctx context.Context, name string) (err error) {
	if c.from != "" {
		if c.profile, err = readProfile(c.from); err != nil {
			return err
		}
	}
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout,
			fmt.Errorf("--timeout %v is over", c.timeout))
		defer cancel()
	}
	c.registry.Stderr = c.bars
	im, err := c.registry.Open(name)
	if err != nil {
		return err
	}
	if err = c.each(ctx, im); err != nil && ctx.Err() != nil {
		return fmt.Errorf("index of %s is not finished: %w", im.Ref(), context.Cause(ctx))
	}
	return err
}

// each makes the index for every platform. One that has nothing to index does not end it.
func (c *indexCreate) each(ctx context.Context, im reach.Image) error {
	list, err := reach.Manifests(ctx, im, c.platforms)
	if err != nil {
		return err
	}
	if len(list) > 1 && c.output != "" && !c.toFolder() {
		return show.WithCode(show.Usage, fmt.Errorf("-o %s: a file holds the index of one "+
			"platform; name one with --platform, or give a folder", c.output))
	}
	var nothing error
	for _, m := range list {
		if err := c.one(ctx, im, m); show.Code(err) == show.Nothing {
			nothing = errors.Join(nothing, err)
		} else if err != nil {
			return err
		}
	}
	if c.profile != nil {
		return fmt.Errorf("--profile %s: it is of manifest %s, for which no index was made: it "+
			"is not published", c.from, c.profile.Manifest)
	}
	return nothing
}

func (c *indexCreate) toFolder() bool {
	st, err := os.Stat(c.output)
	return strings.HasSuffix(c.output, "/") || err == nil && st.IsDir()
}

// one makes the index for one manifest and puts it where the user wants it.
func (c *indexCreate) one(ctx context.Context, im reach.Image, m reach.Manifest) error {
	what := im.Ref()
	if m.Platform != "" {
		what += " (" + m.Platform + ")"
	}
	dir, err := os.MkdirTemp("", "mica-index-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c.bars.Clear()
	c.bars.SetStatus(what)
	b, err := c.build(ctx, im, m, dir)
	if err != nil {
		return err
	}
	defer b.close()
	c.sayf("%s: storing its index, %s", what, show.Bytes(b.treesLen+b.windowsLen))
	if c.push {
		if err := b.store(ctx, im, m.Desc); err != nil {
			return err
		}
	}
	switch {
	case c.output == "":
	case c.toFolder():
		l, err := layout.Create(strings.TrimSuffix(c.output, "/"))
		if err != nil {
			return err
		}
		if err := b.store(ctx, l.Image(""), m.Desc); err != nil {
			return err
		}
	default:
		if err := b.writeFile(c.output); err != nil {
			return err
		}
	}
	c.bars.Clear()
	for _, s := range b.skipped {
		fmt.Fprintln(c.stderr, "mica: not indexed, it will be downloaded whole:", s)
	}
	if err := b.report(c.stdout, what, m); err != nil {
		return err
	}
	if p := c.profile; p != nil && p.Manifest == m.Desc.Digest {
		c.profile = nil
		return pushProfile(ctx, c.stdout, im, m, p, true)
	}
	return nil
}

// store puts the index beside an image, as an artifact whose subject is the image's manifest.
func (b *built) store(ctx context.Context, im reach.Image, subject ocispec.Descriptor) error {
	x := artifact.New(b.treesSum, b.treesLen, b.windowsSum, b.windowsLen)
	x.Layers = b.told
	refs, err := im.Referrers(ctx, subject.Digest, artifact.Type)
	if err != nil {
		return err
	}
	list := artifact.Of(artifact.Type, refs)
	manifest := x.Manifest(subject, artifact.Now(list))
	if len(list) > 0 && sameButTime(list[0].Annotations, manifest.Annotations) {
		return nil // the same index is the newest already
	}
	// The one before it stays: nodes may still read windows of it.
	return attach(ctx, im, subject, manifest, list[min(len(list), 1):], blob{x.Trees, b.trees},
		blob{x.Windows, b.windows})
}

// sameButTime tells whether annotations are equal, but for when they were made.
func sameButTime(a, b map[string]string) bool {
	a, b = maps.Clone(a), maps.Clone(b)
	delete(a, ocispec.AnnotationCreated)
	delete(b, ocispec.AnnotationCreated)
	return maps.Equal(a, b)
}

// writeFile writes the two blobs behind each other, and replaces path when they are whole.
func (b *built) writeFile(path string) error {
	return atomicfile.Replace(path, 0o644, func(w io.Writer) error {
		for _, from := range []*os.File{b.trees, b.windows} {
			if _, err := from.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if _, err := io.Copy(w, from); err != nil {
				return err
			}
		}
		return nil
	})
}

// report tells what was made.
func (b *built) report(w io.Writer, what string, m reach.Manifest) error {
	var total int64
	for _, l := range m.Layers {
		total += l.Size
	}
	size := b.treesLen + b.windowsLen
	_, err := fmt.Fprintf(w,
		"%s: index of %d layers, %s (%.2f%% of %s), of which %s before a container starts\n",
		what, b.layers, show.Bytes(size), 100*float64(size)/float64(max(total, 1)),
		show.Bytes(total), show.Bytes(b.treesLen))
	return err
}
