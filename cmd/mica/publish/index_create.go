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
	"runtime"
	"strings"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/targz"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
	"github.com/mica-snapshotter/mica/remote/layout"
)

// indexCreate is one run of `mica index create`.
type indexCreate struct {
	registry  reach.Registry
	push      bool
	output    string
	platforms []string
	spanSize  string
	span      int64            // spanSize in bytes
	from      string           // file with a profile
	profile   *profile.Profile // in it; nil: there is none, or it is published
	out       io.Writer
	bars      *show.Bars
}

// IndexCommand returns `mica index`.
func IndexCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "index", Short: "Make and inspect indexes of images"}
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
The image itself is not changed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.out, c.bars = cmd.OutOrStdout(), show.NewBars(os.Stderr)
			c.registry.Stderr = c.bars
			return c.run(cmd.Context(), args[0])
		},
	}
	cmd.Flags().BoolVar(&c.push, "push", false,
		"store the index beside the image, where micad finds it")
	cmd.Flags().StringVarP(&c.output, "output", "o", "",
		"write the index to a file, or into a folder as an OCI layout")
	cmd.Flags().StringSliceVar(&c.platforms, "platform",
		[]string{platforms.Format(platforms.DefaultSpec())}, "platforms of a multi-platform image")
	cmd.Flags().StringVar(&c.spanSize, "span-size", units.BytesSize(targz.DefaultSpanSize),
		"how much is fetched at the least, uncompressed, 64KiB to 4MiB: smaller makes a larger index")
	cmd.Flags().StringVar(&c.from, "profile", "",
		"with --push: publish the profile in this file beside the index, as mica profile push does")
	c.registry.Add(cmd)
	return cmd
}

func (c *indexCreate) run(ctx context.Context, name string) error {
	if !c.push && c.output == "" {
		return errors.New("nowhere to put the index: give --push to store it beside the image, " +
			"or -o FILE")
	}
	if c.from != "" {
		if !c.push {
			return errors.New("--profile publishes beside an index that is published: give --push")
		}
		p, err := readProfile(c.from)
		if err != nil {
			return err
		}
		c.profile = p
	}
	span, err := units.RAMInBytes(c.spanSize)
	if err != nil {
		return fmt.Errorf("--span-size %q: %w", c.spanSize, err)
	}
	c.span = span
	im, err := c.registry.Open(name)
	if err != nil {
		return err
	}
	list, err := reach.Manifests(ctx, im, c.platforms)
	if err != nil {
		return err
	}
	if len(list) > 1 && c.output != "" && !c.toFolder() {
		return fmt.Errorf("-o %s: a file holds the index of one platform; name one with "+
			"--platform, or give a folder", c.output)
	}
	for _, m := range list {
		if err := c.one(ctx, im, m); err != nil {
			return err
		}
	}
	if c.profile != nil {
		return fmt.Errorf("--profile %s: it is of manifest %s, for which no index was made: it "+
			"is not published", c.from, c.profile.Manifest)
	}
	return nil
}

func (c *indexCreate) toFolder() bool {
	st, err := os.Stat(c.output)
	return strings.HasSuffix(c.output, "/") || err == nil && st.IsDir()
}

// one makes the index for one manifest and puts it where the user wants it.
func (c *indexCreate) one(ctx context.Context, im reach.Image, m reach.Manifest) error {
	dir, err := os.MkdirTemp("", "mica-index-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := c.build(ctx, im, m, dir)
	if err != nil {
		return err
	}
	defer b.close()
	if c.push {
		if err := b.store(ctx, im, m.Desc); err != nil {
			return err
		}
		if p := c.profile; p != nil && p.Manifest == m.Desc.Digest {
			if err := pushProfile(ctx, c.out, im, m, p, true); err != nil {
				return err
			}
			c.profile = nil
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
	return b.report(c.out, im.Ref(), m)
}

// built is an image's index in two temporary files.
type built struct {
	trees, windows       *os.File
	treesSum, windowsSum digest.Digest
	treesLen, windowsLen int64
	layers               int
	told                 []artifact.Layer
	skipped              []string
}

// build scans the image's layers, as many at once as there are cores for.
func (c *indexCreate) build(
	ctx context.Context, im reach.Image, m reach.Manifest, dir string,
) (*built, error) {
	scanned := make([]*scannedLayer, len(m.Layers))
	defer func() {
		for _, s := range scanned {
			s.close()
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(runtime.GOMAXPROCS(0)/2, 1))
	for i, l := range m.Layers {
		bar := c.bars.Add(fmt.Sprintf("layer %d/%d %s", i+1, len(m.Layers),
			show.Short(l.Digest.String())), l.Size)
		g.Go(func() (err error) {
			defer bar.Done()
			scanned[i], err = c.scan(ctx, im, l, dir, bar)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	b := &built{}
	var in []bundle.Input
	for _, s := range scanned {
		if s.skipped != "" {
			b.skipped = append(b.skipped, s.skipped)
			continue
		}
		in = append(in, s.input())
		x, err := index.Open(s.index, s.size)
		if err != nil {
			return nil, err
		}
		l, ok, err := artifact.Tell(x)
		if err != nil {
			return nil, err
		}
		if ok && len(b.told) < artifact.MaxLayers {
			b.told = append(b.told, l)
		}
	}
	if len(in) == 0 {
		return nil, fmt.Errorf("no layer of %s can be indexed: %s", im.Ref(),
			strings.Join(b.skipped, "; "))
	}
	b.layers = len(in)
	return b, b.write(dir, in)
}

// scannedLayer is one layer's index in two temporary files.
type scannedLayer struct {
	index, windows *os.File
	size           int64
	skipped        string // why there is none
}

func (s *scannedLayer) close() {
	if s != nil && s.index != nil {
		s.index.Close()
		s.windows.Close()
	}
}

func (s *scannedLayer) input() bundle.Input {
	return bundle.Input{Index: s.index, Size: s.size,
		Windows: io.NewSectionReader(s.windows, 0, 1<<62)}
}

func (c *indexCreate) scan(
	ctx context.Context, im reach.Image, l ocispec.Descriptor, dir string, bar *show.Bar,
) (*scannedLayer, error) {
	if strings.HasSuffix(l.MediaType, "+encrypted") {
		return &scannedLayer{skipped: fmt.Sprintf("layer %s: it is encrypted", l.Digest)}, nil
	}
	body, err := im.Open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	s := &scannedLayer{}
	if s.index, err = os.CreateTemp(dir, "index-"); err != nil {
		return nil, err
	}
	if s.windows, err = os.CreateTemp(dir, "windows-"); err != nil {
		return nil, errors.Join(err, s.index.Close())
	}
	draft, err := targz.Scan(ctx, bar.Reader(body),
		targz.Options{Windows: s.windows, SpanSize: c.span})
	if (errors.Is(err, targz.ErrNotIndexable) || errors.Is(err,
		tartree.ErrLowest)) && ctx.Err() == nil {
		s.close()
		return &scannedLayer{skipped: fmt.Sprintf("layer %s: %v", l.Digest, err)}, nil
	}
	var bad *targz.Malformed
	if errors.As(err, &bad) && bad.Layer != l.Digest {
		err = fmt.Errorf("its bytes have digest %s: the registry or a proxy sent something "+
			"else: %w",
			bad.Layer, err)
	}
	if err == nil && draft.Layer != l.Digest {
		err = fmt.Errorf("its bytes have digest %s", draft.Layer)
	}
	if err == nil {
		s.size, err = index.Write(s.index, draft)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("layer %s of %s: %w", l.Digest, im.Ref(), err)
	}
	return s, nil
}

// write makes the bundle's two blobs.
func (b *built) write(dir string, in []bundle.Input) (err error) {
	if b.trees, err = os.CreateTemp(dir, "trees-"); err != nil {
		return err
	}
	if b.windows, err = os.CreateTemp(dir, "windows-"); err != nil {
		return err
	}
	trees, windows := digest.Canonical.Digester(), digest.Canonical.Digester()
	if err := bundle.Write(io.MultiWriter(b.trees, trees.Hash()),
		io.MultiWriter(b.windows, windows.Hash()), in); err != nil {
		return err
	}
	b.treesSum, b.windowsSum = trees.Digest(), windows.Digest()
	if b.treesLen, err = b.trees.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	b.windowsLen, err = b.windows.Seek(0, io.SeekEnd)
	return err
}

func (b *built) close() {
	b.trees.Close()
	b.windows.Close()
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
	blobs := []struct {
		d ocispec.Descriptor
		r io.ReadSeeker
	}{
		{x.Trees, b.trees},
		{x.Windows, b.windows},
		{ocispec.DescriptorEmptyJSON, strings.NewReader(string(ocispec.DescriptorEmptyJSON.Data))},
	}
	for _, blob := range blobs {
		if err := im.PushBlob(ctx, blob.d, blob.r); err != nil {
			return err
		}
	}
	// The one before it stays: nodes may still read windows of it.
	_, err = im.PushReferrer(ctx, subject, manifest, list[min(len(list), 1):]...)
	return err
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
func (b *built) report(w io.Writer, ref string, m reach.Manifest) error {
	var total int64
	for _, l := range m.Layers {
		total += l.Size
	}
	for _, s := range b.skipped {
		fmt.Fprintln(os.Stderr, "mica: not indexed, it will be downloaded whole:", s)
	}
	platform := ""
	if m.Platform != "" {
		platform = " (" + m.Platform + ")"
	}
	size := b.treesLen + b.windowsLen
	_, err := fmt.Fprintf(w,
		"%s%s: index of %d layers, %s (%.2f%% of %s), of which %s before a container starts\n",
		ref, platform, b.layers, show.Bytes(size), 100*float64(size)/float64(max(total,
			1)), show.Bytes(total), show.Bytes(b.treesLen))
	return err
}
