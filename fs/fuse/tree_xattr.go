package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// anyXattrs says whether some file of the tree has extended attributes. If none
// has, ENOSYS to the first question is also the last: overlayfs asks for one with
// every file that it opens.
//
// The whole tree is walked for it once, when somebody asks, until the
// first file that has some.
func (t *treeFS) anyXattrs() bool {
	t.scan.Do(func() { t.xattrs = t.scanXattrs() })
	return t.xattrs
}

func (t *treeFS) scanXattrs() bool {
	dirs := []uint64{t.tree.Root()}
	for found := false; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		err := t.tree.ReadDir(dir, 0, func(e erofs.Dirent) bool {
			if e.Name == ".." {
				return true
			}
			ino, err := t.tree.Inode(e.Nid)
			// What cannot be read is asked for again when somebody wants it.
			found = err != nil || ino.HasXattrs
			if e.Type == erofs.Directory && e.Name != "." {
				dirs = append(dirs, e.Nid)
			}
			return !found
		})
		if err != nil || found {
			return true
		}
	}
	return false
}

func (t *treeFS) GetXAttr(
	_ <-chan struct{}, h *gofuse.InHeader, name string, dest []byte,
) (uint32, gofuse.Status) {
	if !t.anyXattrs() {
		return 0, gofuse.ENOSYS
	}
	value, err := t.tree.Xattr(h.NodeId, name)
	if err != nil {
		return 0, errno(err)
	}
	return fit(dest, value)
}

func (t *treeFS) ListXAttr(
	_ <-chan struct{}, h *gofuse.InHeader, dest []byte,
) (uint32, gofuse.Status) {
	// Not ENOSYS where no file has any: the kernel would make it EOPNOTSUPP, and an empty list is
	// what an unpacked layer gives.
	var list []byte
	err := t.tree.Xattrs(h.NodeId, func(name string, _ []byte) bool {
		list = append(append(list, name...), 0)
		return true
	})
	if err != nil {
		return 0, errno(err)
	}
	return fit(dest, list)
}

// fit copies what was asked for into dest, or says how long dest must be.
func fit(dest, value []byte) (uint32, gofuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), gofuse.ERANGE
	}
	return uint32(copy(dest, value)), gofuse.OK
}
