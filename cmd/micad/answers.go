package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/page"
	"github.com/mica-snapshotter/mica/fs"
)

// handler answers package admin's API.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+admin.PathInfo, func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, d.info())
	})
	mux.HandleFunc("GET "+admin.PathLayers, func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, d.layers())
	})
	mux.HandleFunc("GET "+admin.PathReplays, func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, d.table.Replays())
	})
	mux.HandleFunc("GET "+admin.PathFallbacks, func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, d.fallbacks())
	})
	mux.HandleFunc("GET "+admin.PathImage, func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, d.image(r.Context(), r.URL.Query().Get("ref")))
	})
	mux.HandleFunc("GET "+admin.PathStarts, func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, d.starts.Latest())
	})
	d.handleCache(mux)
	shown := d.page()
	for _, path := range page.Paths {
		mux.Handle("GET /"+path, shown)
	}
	mux.Handle("GET "+admin.PathMetrics, d.metrics())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	profiles := newProfilesHandler(d.profiles, d.log)
	mux.Handle(admin.PathProfiles, profiles)
	mux.Handle(admin.PathProfiles+"/", profiles)
	return mux
}

// layers returns the layers of the node, those of a pull that has just ended included.
func (d *daemon) layers() []fs.Status {
	d.table.Pulls().AwaitPromised()
	return d.table.Status()
}

func (d *daemon) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		d.log.Debug("answer was not taken", "err", err)
	}
}

func (d *daemon) info() admin.Info {
	i := admin.Info{
		Version: version, PID: os.Getpid(), Root: d.config.Root, Started: d.started,
		Mode: d.config.Mode, RemapIDs: d.config.RemapIDs, Content: d.config.Content,
		BuildKit: d.config.BuildKit.Socket, HostsDir: d.config.Remote.ConfigPath,
		AsksContainerd: d.containerd != nil, Unlabelled: int64(d.snapshotter.Stats().Unannotated),
		Restoring: d.restoring.Load(),
	}
	lazy, complete, err := d.table.Modes()
	if err != nil {
		i.Lazy, i.Complete = err.Error(), err.Error()
		return i
	}
	i.Lazy, i.Complete = string(lazy), string(complete)
	return i
}

// fallbacks returns the images that lately were not lazy.
func (d *daemon) fallbacks() []admin.Fallback {
	list := []admin.Fallback{}
	for _, f := range d.snapshotter.Fallbacks() {
		list = append(list,
			admin.Fallback{Ref: f.Ref, Layer: f.Layer.String(), Reason: f.Reason, Time: f.Time})
	}
	for _, w := range d.table.Pulls().Wholes() {
		list = append(list, admin.Fallback{Ref: w.Ref, Layer: w.Layers[0].String(), Whole: w.Layers,
			Size: w.Size, Reason: w.Reason, Time: w.Time})
	}
	return list
}

// metrics serves Prometheus' text format.
func (d *daemon) metrics() http.Handler {
	return promhttp.HandlerFor(d.registry(), promhttp.HandlerOpts{ErrorLog: slogPrinter{d.log}})
}

// registry has micad's metrics, and those of its process.
func (d *daemon) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(d), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// slogPrinter writes what promhttp has to say to the log.
type slogPrinter struct{ log *slog.Logger }

func (p slogPrinter) Println(v ...any) { p.log.Error("metrics", "err", fmt.Sprintln(v...)) }
