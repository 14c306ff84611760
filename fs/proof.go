package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// prove reads a complete layer to its end: the bytes have to be those that the diffID names, and the files those
// that they hold, as only then can it be told. An index that shows other files is forged, or was made by an
// indexer that was wrong: an index made here takes its place, which those see who mount the layer from now on.
func (v *live) prove(ctx context.Context, s *store.Layer) error {
	r, w := io.Pipe()
	scanned := make(chan struct{})
	var root *index.Node
	var scanErr error
	memory := v.t.scans.begin(ctx)
	defer memory.end()
	go func() {
		defer close(scanned)
		root, scanErr = v.scanTree(r, memory)
		_, _ = io.Copy(io.Discard, r) // what is behind the tar's end belongs to the digest
	}()
	err := s.VerifyWhole(ctx, w)
	w.CloseWithError(err) // nil: the end
	<-scanned
	if errors.Is(err, store.ErrMismatch) {
		return errors.Join(err, v.blame(ctx))
	}
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{Digest: v.digest, Size: s.Record().LayerSize}
	if b, err := v.origins.blob(desc); err == nil {
		b.Forget() // all of it is here
	}
	if scanErr != nil {
		return fmt.Errorf("compare the index with the layer's tar: %w", advise(scanErr))
	}
	err = index.Same(v.index, root)
	if err == nil || v.trust.forged.Load() {
		return s.Proved(false)
	}
	if !errors.Is(err, index.ErrCorrupt) {
		return err
	}
	v.t.log.ErrorContext(ctx, "the index from the registry shows other files than the layer has: containers that start from now on see the layer's own",
		"ref", v.origins.latest(), "layer", v.digest, "err", err)
	if err := v.replaceIndex(s, root); err != nil {
		return fmt.Errorf("replace the forged index: %w", err)
	}
	return s.Proved(true)
}

// scanTree returns the tree of a tar. A panic fails the scan, and nothing else.
func (v *live) scanTree(r io.Reader, memory *scan) (root *index.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			v.t.panicked(p)
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return tartree.Scan(r, v.t.o.Limits.tree(memory))
}

// blame finds out why a layer is not what its diffID names. Where each span is what the index says,
// the index is disproved: no container that starts from then on is given the layer. (Where one is
// not, the disk is at fault: mend puts that right.)
func (v *live) blame(ctx context.Context) error {
	found, err := cache.Compare(ctx, v)
	if err != nil || found.Wrong > 0 || found.Bytes != v.index.Header().DeviceSize {
		return err
	}
	v.t.log.ErrorContext(ctx, "the index from the registry has the digests of other bytes than the layer's: "+
		"no container gets the layer any more", "ref", v.origins.latest(), "layer", v.digest)
	return v.store.Disproved()
}

// replaceIndex puts the index with the right tree in the place of the forged one. Copies with inherited attributes go: they are
// made anew when the layer is mounted by the next micad.
func (v *live) replaceIndex(s *store.Layer, root *index.Node) error {
	spans, err := v.index.Spans()
	if err != nil {
		return err
	}
	v.trust.forged.Store(true)
	path := s.IndexPath()
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
