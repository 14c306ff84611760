package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/page"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/snapshotter"
)

// layers gives the snapshotter the table of live layers. Neither of them imports the other: their
// types of layers have the same fields.
type layers struct {
	*fs.Table
	starts *page.Starts // is told what becomes of pulls and starts
}

var _ snapshotter.Layers = layers{}

// Mount implements snapshotter.Layers.
func (l layers) Mount(
	ctx context.Context, want snapshotter.Layer, below []snapshotter.Below,
) (snapshotter.Mounted, error) {
	defer l.pulling(want)()
	m, err := l.Table.Mount(ctx, fs.Layer(want), belowOf(below))
	return snapshotter.Mounted(m), known(err)
}

// Promise implements snapshotter.Layers.
func (l layers) Promise(
	ctx context.Context, want snapshotter.Layer, below []snapshotter.Below,
) (snapshotter.Mounted, bool) {
	defer l.pulling(want)()
	m, ok := l.Table.Promise(ctx, fs.Layer(want), belowOf(below))
	return snapshotter.Mounted(m), ok
}

// pulling notes that a layer is pulled, unless it is mounted again, until done is called.
func (l layers) pulling(want snapshotter.Layer) (done func()) {
	if want.Image == nil {
		return func() {}
	}
	return l.starts.Pulling(want.Ref, want.Manifest, want.Image)
}

// Starting implements snapshotter.Layers. A layer that is unpacked on others is no container.
func (l layers) Starting(key string, top snapshotter.Layer) {
	l.Table.Starting()
	if top.Digest != "" && !strings.Contains(key, "/extract-") {
		l.starts.Starting(key, top.Ref, top.Manifest, top.Image)
	}
}

func belowOf(all []snapshotter.Below) []fs.Below {
	below := make([]fs.Below, len(all))
	for i, b := range all {
		below[i] = fs.Below(b)
	}
	return below
}

// Trust implements snapshotter.Layers.
func (l layers) Trust(of snapshotter.Layer) (proved, forged bool) {
	return l.Table.Trust(fs.Layer(of))
}

// Vouched implements snapshotter.Layers.
func (l layers) Vouched(ctx context.Context, want snapshotter.Layer) (bool, error) {
	ok, err := l.Table.Vouched(ctx, fs.Layer(want))
	return ok, known(err)
}

// Prove implements snapshotter.Layers.
func (l layers) Prove(ctx context.Context, d digest.Digest) error {
	return known(l.Table.Prove(ctx, d))
}

// known gives an error of the table the snapshotter's name for it.
func known(err error) error {
	if errors.Is(err, fs.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", err, snapshotter.ErrUnavailable)
	}
	if errors.Is(err, proof.ErrDisproved) {
		err = fmt.Errorf("%w: %w", err, snapshotter.ErrDisproved)
	}
	return err
}
