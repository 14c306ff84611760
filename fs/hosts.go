package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/pull"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// pullHost is the table as its pulls see it.
type pullHost struct{ *Table }

var _ pull.Host = pullHost{}

// newPulls returns the pulls of a table.
func (t *Table) newPulls() *pull.Pulls {
	return pull.New(t.ctx, pullHost{t}, pull.Options{
		Root: t.o.Root, Remote: t.o.Remote, Store: t.store, Cache: t.cache, Budget: t.budget,
		Prefetch: &t.prefetch, Copies: t.copies, Profiles: t.o.Profiles,
		Whole:    t.o.Mode == Local || t.o.LocalIndexes,
		Early:    t.o.Fetch.Fill != fetch.None,
		Limited:  t.o.Fetch.Bandwidth > 0,
		Deadline: t.o.PullDeadline, Downloads: t.o.Downloads,
		Limits: t.o.Limits, Scanning: t.o.Scanning, Log: t.log,
	})
}

// Go implements pull.Host.
func (h pullHost) Go(f func(ctx context.Context)) bool { return h.goes(f) }

// Panicked implements pull.Host.
func (h pullHost) Panicked(v any) { h.panicked(v) }

// Asked implements pull.Host.
func (h pullHost) Asked(r pull.Request) {
	if save := h.recordings.Record(r.Ref, r.Manifest, r.Layers()); save != nil {
		h.goes(save)
	}
}

// Show implements pull.Host.
func (h pullHost) Show(ctx context.Context, ref string, d digest.Digest, lowest bool) error {
	l, err := h.stored(d, ref)
	if err != nil {
		return err
	}
	implicit, err := l.index.Implicit()
	if err != nil || len(implicit) > 0 {
		return err // Mount knows the layers below
	}
	if lowest {
		_, err = l.mount(ctx, "", nil)
	} else {
		_, err = l.mountSpot(ctx, spot{layer: d}, &changes{}, "")
	}
	return err
}

// Sweep implements pull.Host.
func (h pullHost) Sweep(ctx context.Context, layers []digest.Digest) error {
	return h.sweep(ctx, layers)
}

// RemoveDamaged implements pull.Host.
func (h pullHost) RemoveDamaged(d digest.Digest, why error) error { return h.removeDamaged(d, why) }

// Pulls returns the pulls that bring the layers.
func (t *Table) Pulls() *pull.Pulls { return t.pulls }

// cacheHost is the table as its cache sees it.
type cacheHost struct{ *Table }

var (
	_ cache.Host  = cacheHost{}
	_ cache.Layer = (*openLayer)(nil)
)

// Layers implements cache.Host.
func (h cacheHost) Layers() []cache.Layer {
	var all []cache.Layer
	for _, l := range h.opened(false) {
		all = append(all, l)
	}
	return all
}

// Fixed implements cache.Host.
func (h cacheHost) Fixed() bool { return h.fixed.Load() }

// Store implements cache.Layer.
func (l *openLayer) Store() *store.Layer { return l.store }

// Data implements cache.Layer.
func (l *openLayer) Data() *layer.Layer { return l.data }

// Spans implements cache.Layer.
func (l *openLayer) Spans() (index.Spans, error) { return l.index.Spans() }

// Cache returns what keeps the layers on disk within their bounds.
func (t *Table) Cache() *cache.Cache { return t.cache }

// Verify is cache.Cache.Verify of a layer that is on disk. What is wrong and could not be put right
// is in what it returns; the error is that there is no such layer, or that ctx has ended.
func (t *Table) Verify(ctx context.Context, d digest.Digest) (cache.Verified, error) {
	out := cache.Verified{Layer: d}
	l, err := t.stored(d, "")
	if errors.Is(err, iofs.ErrNotExist) {
		return out, fmt.Errorf("verify layer %s: %w", d, err)
	}
	if err == nil {
		out, err = t.cache.Verify(ctx, l)
	}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out, nil
}

var _ proof.Layer = (*openLayer)(nil)

// Index implements proof.Layer.
func (l *openLayer) Index() *index.Layer { return l.index }

// IndexFile implements proof.Layer.
func (l *openLayer) IndexFile() io.ReaderAt { return l.file }

// Settle implements proof.Layer.
func (l *openLayer) Settle(ctx context.Context) { l.advance(ctx, func(context.Context) {}) }

// Local implements proof.Layer.
func (l *openLayer) Local() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.points {
		if p.mode != Local {
			return false
		}
	}
	return true
}

// Tree implements proof.Layer. A panic fails the scan, and nothing else.
func (l *openLayer) Tree(
	ctx context.Context, tar io.Reader,
) (root *erofs.Node, done func(), err error) {
	memory := l.t.pulls.Scan(ctx)
	defer func() {
		if p := recover(); p != nil {
			l.t.panicked(p)
			done, err = memory.End, fmt.Errorf("panic: %v", p)
		}
	}()
	root, err = tartree.Scan(tar, l.t.o.Limits.Tree(memory))
	return root, memory.End, pull.Advise(err)
}

// Compare implements proof.Layer.
func (l *openLayer) Compare(ctx context.Context) (cache.Verified, error) {
	return cache.Compare(ctx, l)
}

// ReplaceIndex implements proof.Layer. Copies with inherited attributes go: they are made anew when
// the layer is mounted by the next micad.
func (l *openLayer) ReplaceIndex(root *erofs.Node) error {
	spans, err := l.index.Spans()
	if err != nil {
		return err
	}
	path := l.store.IndexPath()
	variants, err := filepath.Glob(path + "-*")
	if err != nil {
		return err
	}
	for _, name := range variants {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return atomicfile.Replace(path, 0o600, func(w io.Writer) error {
		_, err := index.Write(w, &index.Draft{Header: l.index.Header(), Root: root, Spans: spans})
		return err
	})
}
