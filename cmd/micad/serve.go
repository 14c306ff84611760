package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/cmd/page"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/keeper"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/remote"
	"github.com/mica-snapshotter/mica/snapshotter"
	"github.com/mica-snapshotter/mica/snapshotter/containerd"
)

// How long calls under way may take to end when micad stops: the shorter one where the next micad
// follows at once. Reads of containers are served all the while.
const (
	stopTimeout     = 5 * time.Second
	handOverTimeout = time.Second
)

// restoreAgain is how long restore waits before it tries anew what it could not mount; twice as
// long each time, up to restoreAtLast.
const (
	restoreAgain  = 2 * time.Second
	restoreAtLast = time.Minute
)

// daemon is what run wires together.
type daemon struct {
	config      config
	log         *slog.Logger
	keeper      *keeper.Keeper // nil: there is none
	traces      *traces
	credentials *credentials
	client      *remote.Client
	profiles    *profile.Dir
	table       *fs.Table
	containerd  *containerd.Client // nil: it is not to be asked
	content     *contents          // nil: not configured
	snapshotter *snapshotter.Snapshotter
	opened      atomic.Pointer[snapshotter.Snapshotter] // once its metadata are
	started     time.Time
	restoring   atomic.Bool
	panics      atomic.Int64 // in calls of containerd
	starts      page.Starts
	problems    page.Problems
}

// serve runs the daemon until ctx ends. The socket comes first: containerd gives up for good on a
// proxy plugin whose socket is missing when it starts. Then the mounts that a former micad has left
// are served again, because containers wait in their reads. Layers that nobody serves are mounted
// behind it.
func serve(ctx context.Context, c config, spans *traces, log *slog.Logger) (err error) {
	k, held, err := keeper.Inherit()
	d := &daemon{config: c, keeper: k, traces: spans, started: time.Now()}
	log = slog.New(d.problems.Handler(log.Handler()))
	d.log = log
	if err != nil {
		log.Error("not all of a former micad is taken over", "err", err)
	}
	sockets, mounts := sortHeld(held)
	listener, err := takeListener(ctx, k, sockets[listenerName], listenerName, c.Address)
	if err != nil {
		return err
	}
	defer listener.Close()
	built, err := takeListener(ctx, k, sockets[builderName], builderName, c.BuildKit.Socket)
	if err != nil {
		return err
	}
	if err := d.open(ctx, mounts); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()

	split := newSplitter(listener)
	server := d.server(d.snapshotter, d.credentials.serverOptions()...)
	builder := d.server(d.snapshotter.BuildKit())
	d.content.register(server)
	web := &http.Server{Handler: d.handler(), ReadHeaderTimeout: firstByteTimeout}
	log.Info("micad serves", "version", version, "address", c.Address, "root", c.Root,
		"adopted", len(mounts), "took", time.Since(d.started))
	if err := k.Ready(fmt.Sprintf("serves at %s", c.Address)); err != nil {
		log.Warn("the service manager is not told that micad is ready", "err", err)
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return split.Run(ctx) })
	g.Go(func() error { return ignoreClosed(server.Serve(split.grpc)) })
	if built != nil {
		g.Go(func() error { return ignoreClosed(builder.Serve(built)) })
	}
	g.Go(func() error { return ignoreClosed(web.Serve(split.http)) })
	if c.MetricsAddress != "" {
		d.serveTCP(ctx, g, "metrics", c.MetricsAddress, d.metrics())
	}
	if c.PageAddress != "" {
		d.serveTCP(ctx, g, "the page", c.PageAddress, d.servePage(c.PageAddress))
	}
	d.restoring.Store(true)
	g.Go(func() error { d.restore(ctx); return nil })
	g.Go(func() error { d.hear(ctx); return nil })
	g.Go(func() error { d.watchContent(ctx); return nil })
	g.Go(func() error { d.tellPods(ctx); return nil })
	g.Go(func() error {
		d.credentials.retain(ctx, func() ([]fs.Status, bool) {
			return d.layers(), !d.restoring.Load()
		})
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		if err := k.Stopping(); err != nil {
			log.Warn("the service manager is not told that micad stops", "err", err)
		}
		// Calls that wait for the network end with their layers.
		timer := time.AfterFunc(d.grace(), func() { server.Stop(); builder.Stop() })
		defer timer.Stop()
		server.GracefulStop()
		builder.GracefulStop()
		return web.Close()
	})
	return g.Wait()
}

// serveTCP serves something over TCP until ctx ends. Containers are served without it.
func (d *daemon) serveTCP(
	ctx context.Context, g *errgroup.Group, what, address string, h http.Handler,
) {
	server := &http.Server{Addr: address, Handler: h, ReadHeaderTimeout: firstByteTimeout}
	g.Go(func() error {
		if err := ignoreClosed(server.ListenAndServe()); err != nil {
			d.log.Error(what+" over TCP: not served", "address", address, "err", err)
		}
		return nil
	})
	g.Go(func() error { <-ctx.Done(); return server.Close() })
}

// grace is how long calls under way may take to end.
func (d *daemon) grace() time.Duration {
	if d.keeper.Keeps() {
		return handOverTimeout
	}
	return stopTimeout
}

// sortHeld tells micad's sockets, by their names, from the mounts in what the keeper has handed out.
func sortHeld(held []keeper.Held) (sockets map[string]*keeper.Held, mounts []keeper.Held) {
	sockets = map[string]*keeper.Held{}
	for i, h := range held {
		if h.Name == listenerName || h.Name == builderName {
			sockets[h.Name] = &held[i]
			continue
		}
		mounts = append(mounts, h)
	}
	return sockets, mounts
}

// ignoreClosed drops the error of a server that was told to end.
func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// open makes the parts, from the registry to the snapshotter. held are the mounts of a former
// micad.
func (d *daemon) open(ctx context.Context, held []keeper.Held) error {
	c := d.config
	mode, err := fs.ParseMode(c.Mode)
	if err != nil {
		return err
	}
	ahead, err := c.fetchOptions()
	if err != nil {
		return err
	}
	disk, err := c.cacheOptions()
	if err != nil {
		return err
	}
	disk.InUse = d.inUse
	d.credentials = openCredentials(c, d.log)
	d.client, err = remote.New(remote.Config{
		ConfigPath:  c.Remote.ConfigPath,
		Credentials: d.credentials.Credentials,
		UserAgent:   "micad/" + version,
		SpoolDir:    filepath.Join(c.Root, "tmp"),
		Logger:      d.log,
		Follow:      d.starts.Follow,
	})
	if err != nil {
		return err
	}
	limits, err := c.limits()
	if err != nil {
		return err
	}
	if c.Containerd != noContainerd {
		addresses := containerd.Addresses()
		if address := cmp.Or(c.Containerd, c.Credentials.ImageService); address != "" {
			addresses = []string{address}
		}
		if d.containerd, err = containerd.New(addresses, c.Remote.ConfigPath, d.log); err != nil {
			return err
		}
	}
	ahead.Budget = line.New(0, 0)
	ahead.Budget.Waits = d.starts.Waits
	d.content = openContents(ctx, d)
	d.profiles = profile.NewDir(c.Root)
	d.table, err = fs.Open(ctx, fs.Options{
		Root: c.Root, Remote: d.client, Mode: mode, DirectIO: c.DirectIO,
		ReadDeadline: c.ReadDeadline.d, PullDeadline: c.PullDeadline.d,
		Downloads: c.Remote.Downloads, LocalIndexes: c.Index.Trust == "local", Limits: limits,
		Log:      d.log,
		Scanning: scanning,
		Profiles: d.profiles, Fetch: ahead, Cache: disk, Keeper: d.keeper, Held: held,
	})
	if err != nil {
		return err
	}
	options := []snapshotter.Option{snapshotter.WithLogger(d.log)}
	if c.RemapIDs {
		options = append(options, snapshotter.WithRemapIDs())
	}
	if d.containerd != nil {
		options = append(options, snapshotter.WithImages(d.containerd))
	}
	if d.content != nil {
		options = append(options, snapshotter.WithBlobs(d.content))
	}
	if len(c.MountOptions) > 0 {
		options = append(options, snapshotter.WithMountOptions(c.MountOptions...))
	}
	d.snapshotter = snapshotter.New(c.Root, layers{d.table, &d.starts}, options...)
	if err := d.openSnapshotter(ctx, len(held) > 0); err != nil {
		return errors.Join(err, d.close())
	}
	d.opened.Store(d.snapshotter)
	return nil
}

// openSnapshotter opens the snapshotter. Where containers are reading already, a failure, of the
// disk say, is no reason to end: it is tried again, and containerd waits.
func (d *daemon) openSnapshotter(ctx context.Context, serving bool) error {
	for wait := restoreAgain; ; wait = min(2*wait, restoreAtLast) {
		err := d.snapshotter.Open(ctx)
		if err == nil || !serving {
			return err
		}
		d.log.Error("containers go on reading, and none can start: the snapshotter does not "+
			"open; it is tried again", "in", wait, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func (d *daemon) close() error {
	err := errors.Join(d.content.close(), d.snapshotter.Close(), d.table.Close())
	if d.containerd != nil {
		err = errors.Join(err, d.containerd.Close())
	}
	d.client.Close()
	return errors.Join(err, d.credentials.close())
}

// restore mounts what was mounted before, and then takes away what belongs to nothing. What cannot
// be mounted now, because its layer is damaged and the registry is away, is tried again.
func (d *daemon) restore(ctx context.Context) {
	defer d.restoring.Store(false)
	for wait := restoreAgain; ; wait = min(2*wait, restoreAtLast) {
		start := time.Now()
		err := d.snapshotter.Restore(ctx)
		if err == nil {
			d.log.Info("layers of an earlier run are mounted",
				"layers", d.snapshotter.Stats().Restored, "took", time.Since(start))
			break
		}
		if ctx.Err() != nil {
			return
		}
		d.log.Error("some layers of an earlier run are not mounted; they are tried again",
			"in", wait, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
	if d.snapshotter.MayHaveForgotten() {
		return // what seems unused may be in use
	}
	if err := d.table.Sweep(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("unused layers are left over", "err", err)
	}
}

// hear begins with images of which containerd has no more than the manifest.
func (d *daemon) hear(ctx context.Context) {
	if d.containerd == nil {
		return
	}
	d.containerd.Watch(ctx, d.content.expect, func(i snapshotter.Image) {
		d.starts.Announced(i.Refs[0], i.Manifest, i.Layers)
		if err := d.table.Pulls().Announce(i.Refs[0], i.Manifest, i.Layers); err != nil {
			d.log.Debug("image is not announced", "ref", i.Refs[0], "err", err)
		}
	})
}
