package fs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/pull"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

var _ proof.Layer = (*openLayer)(nil)

// Index implements proof.Layer.
func (v *openLayer) Index() *index.Layer { return v.index }

// IndexFile implements proof.Layer.
func (v *openLayer) IndexFile() io.ReaderAt { return v.file }

// Settle implements proof.Layer.
func (v *openLayer) Settle(ctx context.Context) {
	if v.saved(ctx) {
		v.complete(ctx)
	}
}

// Local implements proof.Layer.
func (v *openLayer) Local() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.points {
		if p.mode != Local {
			return false
		}
	}
	return true
}

// Tree implements proof.Layer. A panic fails the scan, and nothing else.
func (v *openLayer) Tree(
	ctx context.Context, tar io.Reader,
) (root *erofs.Node, done func(), err error) {
	memory := v.t.pulls.Scan(ctx)
	defer func() {
		if p := recover(); p != nil {
			v.t.panicked(p)
			done, err = memory.End, fmt.Errorf("panic: %v", p)
		}
	}()
	root, err = tartree.Scan(tar, v.t.o.Limits.Tree(memory))
	return root, memory.End, pull.Advise(err)
}

// Compare implements proof.Layer.
func (v *openLayer) Compare(ctx context.Context) (cache.Verified, error) {
	return cache.Compare(ctx, v)
}

// ReplaceIndex implements proof.Layer. Copies with inherited attributes go: they are made anew when
// the layer is mounted by the next micad.
func (v *openLayer) ReplaceIndex(root *erofs.Node) error {
	spans, err := v.index.Spans()
	if err != nil {
		return err
	}
	path := v.store.IndexPath()
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
		_, err := index.Write(w, &index.Draft{Header: v.index.Header(), Root: root, Spans: spans})
		return err
	})
}
