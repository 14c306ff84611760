package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mica-snapshotter/mica/index/erofs"
)

func dirEntry(e erofs.Dirent) gofuse.DirEntry {
	return gofuse.DirEntry{Name: e.Name, Ino: e.Nid, Mode: e.Type.Mode(), Off: e.Next}
}

func (t *treeFS) ReadDir(
	_ <-chan struct{}, in *gofuse.ReadIn, l *gofuse.DirEntryList,
) gofuse.Status {
	err := t.tree.ReadDir(in.NodeId, in.Offset, func(e erofs.Dirent) bool {
		return l.AddDirEntry(dirEntry(e))
	})
	return errno(err)
}

func (t *treeFS) ReadDirPlus(
	_ <-chan struct{}, in *gofuse.ReadIn, l *gofuse.DirEntryList,
) gofuse.Status {
	var bad error
	err := t.tree.ReadDir(in.NodeId, in.Offset, func(e erofs.Dirent) bool {
		var ino erofs.Inode
		dots := e.Name == "." || e.Name == ".."
		if !dots {
			if ino, bad = t.tree.Inode(e.Nid); bad != nil {
				return false
			}
		}
		out := l.AddDirLookupEntry(dirEntry(e))
		// "." and ".." stay without a node: they are no lookups.
		if out != nil && !dots {
			setEntry(&ino, out)
		}
		return out != nil
	})
	if err == nil {
		err = bad
	}
	return errno(err)
}
