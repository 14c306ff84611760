package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
)

// watchedSnapshotter tells a watch what becomes of layers.
type watchedSnapshotter struct {
	snapshots.Snapshotter
	w *pullWatch
}

// Prepare implements snapshots.Snapshotter.
func (s watchedSnapshotter) Prepare(
	ctx context.Context, key, parent string, opts ...snapshots.Opt,
) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return nil, err
		}
	}
	layer := s.w.ask(digest.Digest(info.Labels[snapshotters.TargetLayerDigestLabel]))
	_, absent := s.Stat(ctx, info.Labels[snapshots.LabelSnapshotRef])
	mounts, err := s.Snapshotter.Prepare(ctx, key, parent, opts...)
	switch {
	case layer == nil:
	case err == nil:
		s.w.leftToContainerd(ctx, key, layer)
	case errdefs.IsAlreadyExists(err) && absent != nil:
		s.w.set(layer, served)
	case errdefs.IsAlreadyExists(err):
		s.w.set(layer, wasThere)
	}
	return mounts, err
}

// Commit implements snapshots.Snapshotter.
func (s watchedSnapshotter) Commit(
	ctx context.Context, name, key string, opts ...snapshots.Opt,
) error {
	err := s.Snapshotter.Commit(ctx, name, key, opts...)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if l := s.w.unpacking[key]; l != nil && err == nil {
		l.stage = unpacked
	}
	return err
}

// ask returns the layer with a digest that micad is asked for next; nil: there is none.
func (w *pullWatch) ask(d digest.Digest) *pullLayer {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.layers {
		if l.Digest == d && l.stage == notAsked {
			l.stage = asked
			return l
		}
	}
	return nil
}

func (w *pullWatch) set(l *pullLayer, s pullStage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.stage = s
}

// leftToContainerd notes that micad does not serve a layer, and tells why. micad notes the lowest
// such layer of an image alone: containerd downloads all above it.
func (w *pullWatch) leftToContainerd(ctx context.Context, key string, l *pullLayer) {
	var all []admin.Fallback
	err := w.micad.Get(ctx, admin.PathFallbacks, &all)
	w.mu.Lock()
	lowest := !slices.ContainsFunc(w.layers, func(other *pullLayer) bool {
		return other.stage == ordinary || other.stage == unpacked
	})
	l.stage = ordinary
	w.unpacking[key] = l
	above := len(w.layers) - 1 - slices.Index(w.layers, l)
	w.mu.Unlock()
	if !lowest {
		return
	}
	reason := "micad does not say why: its log may (journalctl -u micad)"
	if err != nil {
		reason = err.Error()
	}
	for _, f := range all {
		if f.Ref == w.ref && f.Layer == l.Digest.String() && f.Whole == nil {
			reason = f.Reason
		}
	}
	which := fmt.Sprintf("layer %s (%s)", show.Short(l.Digest.String()), show.Bytes(l.Size))
	if above > 0 {
		which += fmt.Sprintf(" and the %d above it", above)
	}
	w.sayf("not lazy, containerd downloads it: %s: %s", which, reason)
}
