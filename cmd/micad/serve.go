package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/remote"
	"github.com/mica-snapshotter/mica/remote/creds"
	"github.com/mica-snapshotter/mica/snapshotter"
)

// stopTimeout is how long calls under way may take to end when micad stops.
const stopTimeout = 5 * time.Second

func isUnavailable(err error) bool { return errors.Is(err, fs.ErrUnavailable) }

// daemon is what run wires together.
type daemon struct {
	config      config
	log         *slog.Logger
	client      *remote.Client
	profiles    *profile.Dir
	table       *fs.Table
	snapshotter *snapshotter.Snapshotter
	started     time.Time
	restoring   atomic.Bool
}

// serve runs the daemon until ctx ends. The socket comes first: containerd gives up for good on a
// proxy plugin whose socket is missing when it starts. Layers known from before are mounted behind it.
func serve(ctx context.Context, c config, log *slog.Logger) (err error) {
	listener, err := listen(c.Address)
	if err != nil {
		return err
	}
	defer listener.Close()
	d := &daemon{config: c, log: log, started: time.Now()}
	if err := d.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()

	split := newSplitter(listener)
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(d.snapshotter))
	web := &http.Server{Handler: d.handler(), ReadHeaderTimeout: firstByteTimeout}
	log.Info("micad serves", "version", version, "address", c.Address, "root", c.Root)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return split.Run(ctx) })
	g.Go(func() error { return ignoreClosed(server.Serve(split.grpc)) })
	g.Go(func() error { return ignoreClosed(web.Serve(split.http)) })
	if c.MetricsAddress != "" {
		metrics := &http.Server{Addr: c.MetricsAddress, Handler: d.metrics(), ReadHeaderTimeout: firstByteTimeout}
		g.Go(func() error { return ignoreClosed(metrics.ListenAndServe()) })
		g.Go(func() error { <-ctx.Done(); return metrics.Close() })
	}
	g.Go(func() error { d.restore(ctx); return nil })
	g.Go(func() error { d.trim(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		// Calls that wait for the network end with their layers.
		timer := time.AfterFunc(stopTimeout, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
		return web.Close()
	})
	return g.Wait()
}

// ignoreClosed drops the error of a server that was told to end.
func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// open makes the parts, from the registry to the snapshotter.
func (d *daemon) open(ctx context.Context) error {
	c := d.config
	mode, err := fs.ParseMode(c.Mode)
	if err != nil {
		return err
	}
	ahead, err := c.fetchOptions()
	if err != nil {
		return err
	}
	d.client, err = remote.New(remote.Config{
		ConfigPath:  c.Remote.ConfigPath,
		Credentials: creds.NewDocker(creds.DockerOptions{Paths: c.Remote.DockerConfigs}).Credentials,
		UserAgent:   "micad/" + version,
		Logger:      d.log,
	})
	if err != nil {
		return err
	}
	d.profiles = profile.NewDir(c.Root)
	d.table, err = fs.Open(ctx, fs.Options{
		Root: c.Root, Remote: d.client, Mode: mode,
		ReadDeadline: time.Duration(c.ReadDeadline), PullDeadline: time.Duration(c.PullDeadline),
		Downloads: c.Remote.Downloads, LocalIndexes: c.Index.Trust == "local", Log: d.log,
		Profiles: d.profiles, Fetch: ahead,
	})
	if err != nil {
		return err
	}
	options := []snapshotter.Option{snapshotter.WithUnpackedParents(), snapshotter.WithLogger(d.log)}
	if c.RemapIDs {
		options = append(options, snapshotter.WithRemapIDs())
	}
	d.snapshotter = snapshotter.New(c.Root, layers{d.table}, options...)
	if err := d.snapshotter.Open(); err != nil {
		return errors.Join(err, d.close())
	}
	return nil
}

func (d *daemon) close() error {
	err := errors.Join(d.snapshotter.Close(), d.table.Close())
	d.client.Close()
	return err
}

func (d *daemon) restore(ctx context.Context) {
	d.restoring.Store(true)
	defer d.restoring.Store(false)
	if err := d.snapshotter.Restore(ctx); err != nil && ctx.Err() == nil {
		d.log.Error("some layers of an earlier run are not mounted; they are tried again when a container needs them", "err", err)
		return
	}
	if err := d.table.Sweep(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("unused layers are left over", "err", err)
	}
}

// handler answers package admin's API.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+admin.PathInfo, func(w http.ResponseWriter, _ *http.Request) { d.answer(w, d.info()) })
	mux.HandleFunc("GET "+admin.PathLayers, func(w http.ResponseWriter, _ *http.Request) { d.answer(w, d.table.Status()) })
	mux.HandleFunc("GET "+admin.PathReplays, func(w http.ResponseWriter, _ *http.Request) { d.answer(w, d.table.Replays()) })
	mux.HandleFunc("GET "+admin.PathFallbacks, func(w http.ResponseWriter, _ *http.Request) { d.answer(w, d.fallbacks()) })
	mux.Handle("GET "+admin.PathMetrics, d.metrics())
	profiles := newProfilesHandler(d.profiles, d.log)
	mux.Handle(admin.PathProfiles, profiles)
	mux.Handle(admin.PathProfiles+"/", profiles)
	return mux
}

func (d *daemon) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		d.log.Debug("answer was not taken", "err", err)
	}
}

func (d *daemon) info() admin.Info {
	i := admin.Info{
		Version: version, PID: os.Getpid(), Root: d.config.Root, Started: d.started, Mode: d.config.Mode, RemapIDs: d.config.RemapIDs,
		Unlabelled: int64(d.snapshotter.Stats().Unannotated), Restoring: d.restoring.Load(),
	}
	lazy, complete, err := d.table.Modes()
	if err != nil {
		i.Lazy, i.Complete = err.Error(), err.Error()
		return i
	}
	i.Lazy, i.Complete = string(lazy), string(complete)
	return i
}

func (d *daemon) fallbacks() []admin.Fallback {
	list := []admin.Fallback{}
	for _, f := range d.snapshotter.Fallbacks() {
		list = append(list, admin.Fallback{Ref: f.Ref, Layer: f.Layer.String(), Reason: f.Reason, Time: f.Time})
	}
	return list
}

// metrics serves Prometheus' text format.
func (d *daemon) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(d))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: slogPrinter{d.log}})
}

// slogPrinter writes what promhttp has to say to the log.
type slogPrinter struct{ log *slog.Logger }

func (p slogPrinter) Println(v ...any) { p.log.Error("metrics", "err", fmt.Sprintln(v...)) }
