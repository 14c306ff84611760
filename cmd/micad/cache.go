package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/cache"
)

// inUse returns the layers that containers use.
func (d *daemon) inUse(ctx context.Context) (map[digest.Digest]bool, error) {
	s := d.opened.Load()
	if s == nil {
		return nil, errors.New("micad is starting")
	}
	return s.LayersInUse(ctx)
}

// handleCache adds the part of package admin's API that is about what lies on disk.
func (d *daemon) handleCache(mux *http.ServeMux) {
	mux.HandleFunc("GET "+admin.PathCache, func(w http.ResponseWriter, _ *http.Request) {
		d.answer(w, d.table.Cache().Status())
	})
	mux.HandleFunc("GET "+admin.PathUsage, func(w http.ResponseWriter, r *http.Request) {
		all, err := d.table.Cache().Usage(r.Context())
		d.answerOr(w, all, err)
	})
	mux.HandleFunc("POST "+admin.PathGC, func(w http.ResponseWriter, r *http.Request) {
		out, err := d.collect(r.Context(), r.URL.Query().Get("unused") == "true")
		d.answerOr(w, out, err)
	})
	mux.HandleFunc("POST "+admin.PathVerify+"/{layer}", func(w http.ResponseWriter, r *http.Request) {
		out, err := d.table.Verify(r.Context(), digest.Digest(r.PathValue("layer")))
		d.answerOr(w, out, err)
	})
}

// answerOr answers with v, or with an error.
func (d *daemon) answerOr(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, os.ErrNotExist):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		d.answer(w, v)
	}
}

// collect removes what no snapshot refers to and what was brought for nobody; with unused also the
// content of layers that no container uses.
func (d *daemon) collect(ctx context.Context, unused bool) (admin.Collected, error) {
	if d.restoring.Load() {
		return admin.Collected{}, errors.New("layers of an earlier run are still being mounted: " +
			"it is not known yet what is used. Try again later")
	}
	before, err := d.table.Cache().Usage(ctx)
	if err != nil {
		return admin.Collected{}, err
	}
	errs := []error{d.snapshotter.Cleanup(ctx), d.table.Sweep(ctx)}
	if unused {
		errs = append(errs, d.table.Cache().GiveUp(ctx))
	}
	after, err := d.table.Cache().Usage(ctx)
	if err = errors.Join(append(errs, err)...); err != nil {
		return admin.Collected{}, fmt.Errorf("collect garbage: %w", err)
	}
	return freed(before, after), nil
}

// freed compares two usages.
func freed(before, after []cache.Usage) admin.Collected {
	out := admin.Collected{Freed: []admin.Freed{}}
	for _, b := range before {
		f := admin.Freed{Layer: b.Layer, Bytes: b.Disk, Removed: true}
		if n := len(b.Refs); n > 0 {
			f.Ref = b.Refs[n-1]
		}
		if k := slices.IndexFunc(after, func(a cache.Usage) bool {
			return a.Layer == b.Layer
		}); k >= 0 {
			f.Bytes, f.Removed = b.Disk-after[k].Disk, false
		}
		if f.Bytes > 0 || f.Removed {
			out.Freed = append(out.Freed, f)
			out.Bytes += f.Bytes
		}
	}
	return out
}
