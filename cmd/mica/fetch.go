package main

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/semaphore"

	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/remote"
)

// fetchAtOnce is how many blobs are downloaded at a time.
const fetchAtOnce = 3

func fetchCommand() *cobra.Command {
	p := &pull{}
	cmd := &cobra.Command{
		Use:   "fetch REF",
		Short: "Download the blobs of an image that containerd has, for exports and pushes",
		Long: "Download the blobs of an image that containerd has.\n\n" +
			"A lazy image is in containerd without its layers' blobs, which exports, saves, " +
			"conversions and pushes\nto another registry need. They stay until the image is " +
			"removed. Where micad is containerd's content\nplugin this is done by itself, and " +
			"blobs are downloaded as they are read.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.fetch(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0])
		},
	}
	p.add(cmd)
	return cmd
}

// fetch brings the blobs of the image that the name has here, whatever the registry has by now.
func (p *pull) fetch(ctx context.Context, stdout, stderr io.Writer, name string) error {
	named, platform, err := p.parse(name)
	if err != nil {
		return err
	}
	client, _, err := p.containerd.open(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	lines := p.progressTo(stderr)
	registry, im, err := p.open(lines, named)
	if err != nil {
		return err
	}
	defer registry.Close()
	ctx = namespaces.WithNamespace(ctx, p.namespace)
	image, err := client.ImageService().Get(ctx, named.String())
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("namespace %s has no image %s: pull it first, or name another "+
			"--namespace (mica images lists all)", p.namespace, named)
	}
	if err != nil {
		return err
	}
	var layers int
	err = leased(ctx, client, lines, func(ctx context.Context) error {
		layers, err = fetchBlobs(ctx, client.ContentStore(), im, image.Target, platform, lines)
		return err
	})
	if err != nil {
		return fmt.Errorf("fetch %s: %w", named, err)
	}
	if layers == 0 {
		return fmt.Errorf("fetch %s: it has no layers for %s: choose with --platform", named,
			p.platform)
	}
	if p.quiet {
		_, err = fmt.Fprintln(stdout, named)
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s: %s downloaded, all blobs are in containerd\n", named,
		units.HumanSize(float64(registry.Stats().BytesDown)))
	return err
}

// fetchBlobs downloads what is missing of an image, and returns how many layers it has.
func fetchBlobs(
	ctx context.Context, store content.Store, im *remote.Image, target ocispec.Descriptor,
	platform ocispec.Platform, lines *pullLines,
) (layers int, err error) {
	bars := lines.terminal
	if bars == nil {
		bars = &show.Bars{}
	}
	noted, err := docker.AppendDistributionSourceLabel(store, im.Ref())
	if err != nil {
		return 0, err
	}
	children := images.SetChildrenLabels(store, images.FilterPlatforms(
		images.ChildrenHandler(store), platforms.OnlyStrict(platform)))
	fetcher := remotes.FetcherFunc(
		func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
			body, err := resolver{im: im}.open(ctx, d)
			if err != nil {
				return nil, err
			}
			bar := bars.Add("blob "+show.Short(d.Digest.String()), d.Size)
			return &download{bar.Reader(body), body, bar}, nil
		})
	err = images.Dispatch(ctx, images.Handlers(remotes.FetchHandler(store, fetcher), children,
		noted), semaphore.NewWeighted(fetchAtOnce), target)
	if lines.onTerminal() {
		bars.Clear()
	}
	if err != nil {
		return 0, err
	}
	return readLayers(ctx, store, children, target)
}

// readLayers reads a byte of each layer, and counts them: a content plugin downloads blobs when
// they are read.
func readLayers(
	ctx context.Context, store content.Provider, children images.HandlerFunc,
	target ocispec.Descriptor,
) (n int, err error) {
	err = images.Walk(ctx, images.HandlerFunc(
		func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if !images.IsLayerType(d.MediaType) {
				return children(ctx, d)
			}
			n++
			r, err := store.ReaderAt(ctx, d)
			if err != nil {
				return nil, err
			}
			defer r.Close()
			_, err = io.ReadFull(io.NewSectionReader(r, 0, 1), make([]byte, 1))
			return nil, err
		}), target)
	return n, err
}
