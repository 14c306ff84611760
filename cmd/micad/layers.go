package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/snapshotter"
)

// layers gives the snapshotter the table of live layers.
type layers struct {
	table *fs.Table
}

var (
	_ snapshotter.Layers   = layers{}
	_ snapshotter.Checker  = layers{}
	_ snapshotter.Promiser = layers{}
	_ snapshotter.Starter  = layers{}
)

// Displaced implements snapshotter.Checker.
func (l layers) Displaced(dirs []string) []string { return l.table.Displaced(dirs) }

// Mount implements snapshotter.Layers.
func (l layers) Mount(ctx context.Context, want snapshotter.Layer, parents []digest.Digest) (snapshotter.Mounted, error) {
	m, err := l.table.Mount(ctx, layerOf(want), below(want, parents))
	if err != nil {
		if isUnavailable(err) {
			err = fmt.Errorf("%w: %w", err, snapshotter.ErrUnavailable)
		}
		return snapshotter.Mounted{}, disproved(err)
	}
	return mounted(m), nil
}

// disproved gives an error of the table the snapshotter's name for it.
func disproved(err error) error {
	if errors.Is(err, fs.ErrDisproved) {
		return fmt.Errorf("%w: %w", err, snapshotter.ErrDisproved)
	}
	return err
}

// Unproved implements snapshotter.Layers.
func (l layers) Unproved(all []snapshotter.Layer) []digest.Digest {
	return l.table.Unproved(layersOf(all))
}

// Forged implements snapshotter.Layers.
func (l layers) Forged(all []snapshotter.Layer) bool { return l.table.Forged(layersOf(all)) }

func layersOf(all []snapshotter.Layer) []fs.Layer {
	layers := make([]fs.Layer, len(all))
	for i, l := range all {
		layers[i] = layerOf(l)
	}
	return layers
}

// Vouched implements snapshotter.Layers.
func (l layers) Vouched(ctx context.Context, want snapshotter.Layer) (bool, error) {
	ok, err := l.table.Vouched(ctx, layerOf(want))
	return ok, disproved(err)
}

// Prove implements snapshotter.Layers.
func (l layers) Prove(ctx context.Context, d digest.Digest) error {
	return disproved(l.table.Prove(ctx, d))
}

// Promise implements snapshotter.Promiser.
func (l layers) Promise(ctx context.Context, want snapshotter.Layer, parents []digest.Digest) (snapshotter.Mounted, bool) {
	m, ok := l.table.Promise(ctx, layerOf(want), below(want, parents))
	return mounted(m), ok
}

// Starting implements snapshotter.Starter.
func (l layers) Starting() { l.table.Starting() }

func layerOf(want snapshotter.Layer) fs.Layer {
	return fs.Layer{
		Ref: want.Ref, Manifest: want.Manifest, Digest: want.Digest, DiffID: want.DiffID,
		Image: want.Image,
		Dir:   want.Dir,
	}
}

func below(want snapshotter.Layer, parents []digest.Digest) []fs.Below {
	below := make([]fs.Below, len(want.Lower))
	for i, dir := range want.Lower {
		below[i].Dir = dir
		if i < len(parents) {
			below[i].Digest = parents[i]
		}
	}
	return below
}

func mounted(m fs.Mounted) snapshotter.Mounted {
	return snapshotter.Mounted{Dir: m.Dir, DiffID: m.DiffID, Usage: snapshots.Usage{Size: m.Size, Inodes: m.Inodes}}
}

// Remove implements snapshotter.Layers.
func (l layers) Remove(ctx context.Context, d digest.Digest) error {
	return l.table.Remove(ctx, d)
}
