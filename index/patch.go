package index

import (
	"crypto/sha256"
	"fmt"
	"io"
	"time"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Attr is what Patch can change of a directory.
type Attr struct {
	Mode     uint32 // permission bits; the type stays
	UID, GID uint32
	Mtime    time.Time
	Xattrs   map[string]string // to add; those that the directory has stay
}

// set makes n a directory with these attributes, but for Xattrs.
func (a *Attr) set(n *erofs.Node) {
	n.Mode = erofs.Directory.Mode() | a.Mode&0o7777
	n.UID, n.GID, n.Mtime = a.UID, a.GID, a.Mtime
}

// Patch writes a copy of l's index file in which the directories of the given
// nids have other attributes, and the digests in the header fit: for the
// directories that a layer's tar does not mention (Implicit), whose attributes
// are those of the layer below. The copy has l's nids, and is as long as the original, where no
// extended attribute is added.
func Patch(w io.Writer, l *Layer, attrs map[uint64]Attr) error {
	write := patch
	for _, a := range attrs {
		if len(a.Xattrs) > 0 {
			write = patchNodes
		}
	}
	if err := write(w, l, attrs); err != nil {
		return fmt.Errorf("patch index of layer %s: %w", l.header.Layer, err)
	}
	return nil
}

func patch(w io.Writer, l *Layer, attrs map[uint64]Attr) error {
	dirs := map[uint64]*erofs.Node{}
	for nid, a := range attrs {
		dirs[nid] = &erofs.Node{}
		a.set(dirs[nid])
	}
	r, err := l.tree.Patched(dirs)
	if err != nil {
		return err
	}
	h := *l.header
	tree := &h.section[sectionTree]
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(r, tree.Off, tree.Size)); err != nil {
		return err
	}
	sum.Sum(tree.sum[:0])
	b, err := h.encode()
	if err != nil {
		return err
	}
	if _, err := w.Write(b[:]); err != nil {
		return err
	}
	n, err := io.Copy(w, io.NewSectionReader(r, HeaderSize, h.size-HeaderSize))
	if err == nil && n != h.size-HeaderSize {
		err = corrupt("the file ends at byte %d", HeaderSize+n)
	}
	return err
}

// patchNodes is Patch where inodes become longer.
func patchNodes(w io.Writer, l *Layer, attrs map[uint64]Attr) error {
	for nid := range attrs {
		if ino, err := l.tree.Inode(nid); err != nil {
			return err
		} else if ino.Type() != erofs.Directory {
			return corrupt("inode %d has mode %#o: not a directory", nid, ino.Mode)
		}
	}
	return l.rewrite(w, func(nodes map[uint64]*erofs.Node) {
		for nid, a := range attrs {
			n := nodes[nid]
			if n == nil {
				continue // it is not of the tree: nobody sees it
			}
			a.set(n)
			for name, value := range a.Xattrs {
				if n.Xattrs == nil {
					n.Xattrs = map[string]string{}
				}
				if _, ok := n.Xattrs[name]; !ok {
					n.Xattrs[name] = value
				}
			}
		}
	})
}
