package fuse

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// treeFile is a regular file of a tree: pieces of the device, holes, and pieces
// that lie in the tree itself.
type treeFile struct {
	tree *erofs.Tree
	dev  *sectors
	ino  erofs.Inode
}

var _ file = (*treeFile)(nil)

func (t *treeFS) file(node uint64) (file, error) {
	ino, err := t.tree.Inode(node)
	if err != nil {
		return nil, err
	}
	switch ino.Type() {
	case erofs.Regular:
		return &treeFile{tree: t.tree, dev: t.dev, ino: ino}, nil
	case erofs.Directory:
		return nil, unix.EISDIR
	}
	return nil, unix.EINVAL
}

func (f *treeFile) size() int64 { return f.ino.Size }

func (f *treeFile) fill(ctx context.Context, off, n int64) error {
	if f.dev.filler == nil {
		return nil
	}
	return f.tree.Extents(f.ino, off, n, func(e erofs.Extent) error {
		if e.Data != nil || e.Device == erofs.Hole {
			return nil
		}
		return f.dev.fill(ctx, e.Device, e.Size)
	})
}

func (f *treeFile) readAt(ctx context.Context, p []byte, off int64) error {
	end := off
	err := f.tree.Extents(f.ino, off, int64(len(p)), func(e erofs.Extent) error {
		piece := p[e.File-off:][:e.Size]
		end = e.File + e.Size
		switch {
		case e.Data != nil:
			copy(piece, e.Data)
			return nil
		case e.Device == erofs.Hole:
			clear(piece)
			return nil
		}
		return f.dev.readAt(ctx, piece, e.Device)
	})
	if err == nil && end != off+int64(len(p)) {
		// The pieces would leave bytes of an earlier reader in the buffer.
		err = fmt.Errorf("pieces of inode %d end at %d: %w", f.ino.Nid, end, index.ErrCorrupt)
	}
	return err
}
