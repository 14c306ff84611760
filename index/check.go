package index

import (
	"context"
	"fmt"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Check says whether an index that came from elsewhere may be used: by this package, and by a
// kernel that is to mount it. It compares the file with its digests, checks spans and lists, and
// the tree by erofs.Tree.Check, which says what it takes.
func Check(ctx context.Context, l *Layer) error {
	if err := check(ctx, l); err != nil {
		return fmt.Errorf("check index of layer %s: %w", l.header.Layer, err)
	}
	return nil
}

func check(ctx context.Context, l *Layer) error {
	if err := l.Verify(ctx); err != nil {
		return err
	}
	spans, err := l.Spans()
	if err != nil {
		return err
	}
	if spans.FromStart() {
		return corrupt("its layer can only be fetched whole: such an index is for the node that made it")
	}
	implicit, err := l.Implicit()
	if err != nil {
		return err
	}
	return l.tree.Check(ctx, implicit)
}

// Same tells whether l's tree is the one that root describes: what a scan of the layer's tar gives.
// So a tree that came from elsewhere is proved, which no digest in the index can do; l has to be
// one that Check accepts. nil: they are the same. The error wraps ErrCorrupt and names the first
// file that is not. root must not be used elsewhere meanwhile.
func Same(l *Layer, root *erofs.Node) error {
	implicit, err := l.Implicit()
	if err != nil {
		return err
	}
	if err := l.tree.Same(root, implicit); err != nil {
		return fmt.Errorf("tree of layer %s: %w", l.header.Layer, err)
	}
	return nil
}
