package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/remote"
)

const (
	// leaseLife ends the lease of a pull that was killed: what it left goes then.
	leaseLife = 24 * time.Hour
	// tidyTimeout bounds what is done when a pull has ended.
	tidyTimeout = 20 * time.Second
)

// pull is the flags of `mica pull`.
type pull struct {
	registry   reach.Registry
	containerd containerdFlags
	namespace  string
	platform   string
	plainHTTP  bool
	quiet      bool
}

func pullCommand() *cobra.Command {
	p := &pull{}
	cmd := &cobra.Command{
		Use:   "pull REF",
		Short: "Pull an image into containerd, lazily",
		Long: "Pull an image into containerd, lazily, and say what is waited for.\n\n" +
			"REF is as for `docker pull`: redis is docker.io/library/redis:latest. The registry " +
			"is asked with the\n" +
			"logins of docker and podman. micad reads the image with its own: where it has none,\n" +
			"containerd downloads the image as a whole, and the reason is told.\n\n" +
			"Namespaces: default for ctr and nerdctl, moby for docker, k8s.io for Kubernetes.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0])
		},
	}
	p.add(cmd)
	return cmd
}

// add adds the flags to a command.
func (p *pull) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&p.namespace, "namespace", "n",
		cmp.Or(os.Getenv(namespaces.NamespaceEnvVar), namespaces.Default),
		"containerd's namespace ($"+namespaces.NamespaceEnvVar+")")
	cmd.Flags().StringVar(&p.platform, "platform", platforms.Format(platforms.DefaultSpec()),
		"platform of a multi-platform image")
	cmd.Flags().BoolVar(&p.plainHTTP, "plain-http", false,
		"ask the registry by http where hosts.toml does not say how; micad reads hosts.toml alone")
	cmd.Flags().BoolVarP(&p.quiet, "quiet", "q", false, "print the image's name alone")
	p.containerd.add(cmd)
	p.registry.Add(cmd)
}

func (p *pull) run(ctx context.Context, stdout, stderr io.Writer, name string) (err error) {
	named, _, err := p.parse(name)
	if err != nil {
		return err
	}
	client, micad, err := p.containerd.open(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	w := newPullWatch(named, micad, p.progressTo(stderr))
	micad.Notice = (&reach.Notices{W: w}).Tell
	if err := w.begin(ctx); err != nil {
		return err
	}
	defer w.end()
	registry, im, err := p.open(w, named)
	if err != nil {
		return err
	}
	defer registry.Close()
	ctx = namespaces.WithNamespace(ctx, p.namespace)
	if err := p.pull(ctx, client, im, w); err != nil {
		return p.explain(ctx, im, w, err)
	}
	if err := w.awaitMounts(ctx); err != nil {
		return err
	}
	w.askWhole(ctx)
	w.end()
	if p.quiet {
		_, err = fmt.Fprintln(stdout, named)
		return err
	}
	_, err = fmt.Fprintln(stdout, w.result(int64(registry.Stats().BytesDown)))
	return err
}

// parse reads the image's name, and the platform.
func (p *pull) parse(name string) (reference.Named, ocispec.Platform, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, ocispec.Platform{}, fmt.Errorf("image %q: %w: name it as in `docker pull` "+
			"(HOST/NAME:TAG)", name, err)
	}
	platform, err := platforms.Parse(p.platform)
	if err != nil {
		err = show.WithCode(show.Usage, fmt.Errorf("--platform %q: %w", p.platform, err))
	}
	return named, platform, err
}

// open returns an image at its registry. What is told of the registry goes to told.
func (p *pull) open(told io.Writer, named reference.Named) (*remote.Client, *remote.Image, error) {
	p.registry.Stderr, p.registry.PlainHTTP = told, p.plainHTTP
	registry, err := p.registry.Client()
	if err != nil {
		return nil, nil, err
	}
	im, err := registry.Image(named.String())
	if err != nil {
		registry.Close()
	}
	return registry, im, err
}

// progressTo returns where it is told what is waited for.
func (p *pull) progressTo(stderr io.Writer) *pullLines {
	l := &pullLines{w: stderr, quiet: p.quiet}
	if f, ok := stderr.(*os.File); ok && !p.quiet {
		l.terminal = show.NewBars(f, 0)
	}
	return l
}

// pull has containerd's client pull an image.
func (p *pull) pull(
	ctx context.Context, client *containerd.Client, im *remote.Image, w *pullWatch,
) error {
	name := p.containerd.snapshotter
	watched := watchedSnapshotter{client.SnapshotService(name), w}
	puller, err := containerd.New(reach.SocketPath(p.containerd.address), containerd.WithServices(
		containerd.WithSnapshotters(map[string]snapshots.Snapshotter{name: watched})))
	if err != nil {
		return err
	}
	defer puller.Close()
	annotate := snapshotters.AppendInfoHandlerWrapper(im.Ref())
	return leased(ctx, client, w, func(ctx context.Context) error {
		_, err := puller.Pull(ctx, im.Ref(),
			containerd.WithPlatform(p.platform),
			containerd.WithPullUnpack,
			containerd.WithPullSnapshotter(name),
			containerd.WithResolver(resolver{im, w}),
			containerd.WithImageHandlerWrapper(func(h images.Handler) images.Handler {
				return w.handler(annotate(h))
			}))
		return err
	})
}

// leased calls fn with a lease of its own. Whatever comes of it, no lease is left; where fn fails,
// neither is what it had brought.
func leased(
	ctx context.Context, client *containerd.Client, told io.Writer,
	fn func(ctx context.Context) error,
) error {
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID(),
		leases.WithExpiration(leaseLife))
	if err != nil {
		return err
	}
	err = fn(leases.WithLease(ctx, lease.ID))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	var opts []leases.DeleteOpt
	if err != nil {
		opts = append(opts, leases.SynchronousDelete)
	}
	if err := client.LeasesService().Delete(ctx, lease, opts...); err != nil {
		fmt.Fprintf(told, "containerd keeps for a day what was brought: %v\n", err)
	}
	return err
}

// explain says of a pull that has failed what to do.
func (p *pull) explain(ctx context.Context, im *remote.Image, w *pullWatch, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("pull %s: interrupted", im.Ref())
	case errors.Is(err, remote.ErrNotFound) && !w.resolved():
		return fmt.Errorf("%s has no image %s, or shows it only to those who log in (docker "+
			"login): %w", w.host, im.Ref(), err)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%s speaks http: give --plain-http, and for micad a hosts.toml in %s "+
			"with server = \"http://%s\": %w",
			w.host, filepath.Join(p.registry.HostsDir, w.host), w.host, err)
	case errdefs.IsNotFound(err) && w.resolved() && !w.chosen():
		return fmt.Errorf("%s is not there for %s: choose with --platform: %w", im.Ref(),
			p.platform, err)
	}
	return fmt.Errorf("pull %s: %w", im.Ref(), err)
}

// resolver is a registry, as containerd's client asks it, with one image.
type resolver struct {
	im *remote.Image
	w  *pullWatch
}

var (
	_ remotes.Resolver = resolver{}
	_ remotes.Fetcher  = resolver{}
)

// Resolve implements remotes.Resolver.
func (r resolver) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	d, err := r.im.Resolve(ctx)
	if err == nil {
		r.w.resolve(d)
	}
	return ref, d, err
}

// Fetcher implements remotes.Resolver.
func (r resolver) Fetcher(context.Context, string) (remotes.Fetcher, error) { return r, nil }

// Pusher implements remotes.Resolver.
func (r resolver) Pusher(context.Context, string) (remotes.Pusher, error) {
	return nil, errors.New("a pull does not push")
}

// Fetch implements remotes.Fetcher.
func (r resolver) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	body, err := r.open(ctx, d)
	if err != nil || images.IsIndexType(d.MediaType) || images.IsManifestType(d.MediaType) {
		return body, err
	}
	return r.w.fetching(d, body), nil
}

// open streams a manifest or a blob.
func (r resolver) open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if images.IsIndexType(d.MediaType) || images.IsManifestType(d.MediaType) {
		b, err := r.im.Manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	return r.im.Open(ctx, d)
}
