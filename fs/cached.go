package fs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// cacheHost is the table as its cache sees it.
type cacheHost struct{ *Table }

var (
	_ cache.Host  = cacheHost{}
	_ cache.Layer = (*openLayer)(nil)
)

// Layers implements cache.Host.
func (h cacheHost) Layers() []cache.Layer {
	var all []cache.Layer
	for _, v := range h.opened() {
		all = append(all, v)
	}
	return all
}

// Fixed implements cache.Host.
func (h cacheHost) Fixed() bool { return h.fixed.Load() }

// Store implements cache.Layer.
func (v *openLayer) Store() *store.Layer { return v.store }

// Data implements cache.Layer.
func (v *openLayer) Data() *layer.Layer { return v.data }

// Spans implements cache.Layer.
func (v *openLayer) Spans() (index.Spans, error) { return v.index.Spans() }

// Cache returns what keeps the layers on disk within their bounds.
func (t *Table) Cache() *cache.Cache { return t.cache }

// Verify is cache.Cache.Verify of a layer that is on disk. What is wrong and could not be put right
// is in what it returns; the error is that there is no such layer, or that ctx has ended.
func (t *Table) Verify(ctx context.Context, d digest.Digest) (cache.Verified, error) {
	out := cache.Verified{Layer: d}
	v, err := t.stored(Layer{Digest: d})
	if errors.Is(err, iofs.ErrNotExist) {
		return out, fmt.Errorf("verify layer %s: %w", d, err)
	}
	if err == nil {
		out, err = t.cache.Verify(ctx, v)
	}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out, nil
}

// mend puts right what is wrong on disk of a layer whose bytes together are not what they should
// be.
func (v *openLayer) mend(ctx context.Context) {
	if _, err := v.t.cache.Verify(ctx, v); err != nil && ctx.Err() == nil {
		v.t.log.ErrorContext(ctx, "layer on disk is wrong", "layer", v.digest, "err", err)
	}
}
