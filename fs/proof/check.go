package proof

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// Check reads a whole layer, s, to its end, unless that was done since it was whole: the bytes have
// to be those that the diffID names, and the files those that they hold, as only then can it be
// told. An index that shows other files is forged, or was made by an indexer that was wrong: an
// index made here takes its place, which those see who mount the layer from now on. The caller is
// Settling.
func (p *Proof) Check(ctx context.Context, s *store.Layer) error {
	if p.proved && s.VerifiedWhole() {
		return nil
	}
	err := p.check(ctx, s)
	p.proved = err == nil
	return err
}

func (p *Proof) check(ctx context.Context, s *store.Layer) error {
	r, w := io.Pipe()
	type scan struct {
		root *erofs.Node
		done func()
		err  error
	}
	scanned := make(chan scan, 1)
	go func() {
		root, done, err := p.layer.Tree(ctx, r)
		_, _ = io.Copy(io.Discard, r) // what is behind the tar's end belongs to the digest
		scanned <- scan{root, done, err}
	}()
	err := s.VerifyWhole(ctx, w)
	w.CloseWithError(err) // nil: the end
	tree := <-scanned
	defer tree.done()
	if errors.Is(err, store.ErrMismatch) {
		return errors.Join(err, p.blame(ctx))
	}
	if err != nil {
		return err
	}
	if tree.err != nil {
		return fmt.Errorf("compare the index with the layer's tar: %w", tree.err)
	}
	err = index.Same(p.layer.Index(), tree.root)
	if err == nil || p.Forged() {
		return s.Proved(false)
	}
	if !errors.Is(err, index.ErrCorrupt) {
		return err
	}
	p.log.ErrorContext(ctx, "the index from the registry shows other files than the layer has: "+
		"containers that start from now on see the layer's own", "ref", p.latest(), "err", err)
	p.forged.Store(true)
	if err := p.layer.ReplaceIndex(tree.root); err != nil {
		return fmt.Errorf("replace the forged index: %w", err)
	}
	return s.Proved(true)
}

// blame finds out why a layer is not what its diffID names. Where each span is what the index says,
// the index is disproved: no container that starts from then on is given the layer. (Where one is
// not, the disk is at fault, which the caller of Check sees to.)
func (p *Proof) blame(ctx context.Context) error {
	found, err := p.layer.Compare(ctx)
	if err != nil || found.Wrong > 0 || found.Bytes != p.layer.Index().Header().DeviceSize {
		return err
	}
	p.log.ErrorContext(ctx, "the index from the registry has the digests of other bytes than the "+
		"layer's: no container gets the layer any more", "ref", p.latest())
	return p.layer.Store().Disproved()
}

// latest is the image that brought the layer last.
func (p *Proof) latest() string {
	refs := p.layer.Store().Record().Refs
	if len(refs) == 0 {
		return ""
	}
	return refs[len(refs)-1]
}
