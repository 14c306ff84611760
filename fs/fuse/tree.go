package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// MountTree mounts the tree of layer at dir; the contents of its files come
// from dev, the layer's device.
//
// The mount has neither nosuid nor nodev: who reads a layer directly, without an
// overlay on top, is to find its setuid programs and device nodes at work, as in
// an unpacked image. (Overlayfs looks at its own mount's flags only, not
// at those of its layers.)
func MountTree(
	ctx context.Context, dir string, layer *index.Layer, dev Device, o Options,
) (*Mount, error) {
	t, err := newTreeFS(layer, dev)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	// Without POSIX_ACL the kernel shows access control lists, and goes by the mode alone.
	// No ASYNC_DIO: the kernel waits for an asynchronous direct read without
	// taking signals, and a killed reader would hang for as long as we fetch.
	return mount(ctx, dir, t, kind{name: KindTree, with: gofuse.CAP_POSIX_ACL}, o)
}

// treeFS is the file system of a tree mount: a node ID is a nid of the tree.
type treeFS struct {
	readOnly
	tree   *erofs.Tree
	dev    *sectors
	length int64 // of the device

	scan   sync.Once // fills xattrs, at the first question for one
	xattrs bool
}

var _ filesystem = (*treeFS)(nil)

func newTreeFS(layer *index.Layer, dev Device) (*treeFS, error) {
	t := &treeFS{
		readOnly: readOnly{gofuse.NewDefaultRawFileSystem()},
		tree:     layer.Tree(), dev: newSectors(dev), length: layer.Header().DeviceSize,
	}
	if t.tree.Root() != gofuse.FUSE_ROOT_ID {
		return nil, fmt.Errorf("root inode is %d, FUSE's is %d", t.tree.Root(), gofuse.FUSE_ROOT_ID)
	}
	if dev.Size() != t.length {
		return nil, fmt.Errorf("device has %d bytes, the index says %d", dev.Size(), t.length)
	}
	return t, nil
}

func setAttr(ino *erofs.Inode, a *gofuse.Attr) {
	sec, nsec := uint64(ino.Mtime.Unix()), uint32(ino.Mtime.Nanosecond())
	*a = gofuse.Attr{
		Ino: ino.Nid, Mode: ino.Mode, Nlink: ino.Nlink, Owner: gofuse.Owner{Uid: ino.UID,
			Gid: ino.GID},
		Size: uint64(ino.Size), Blocks: uint64(ino.Blocks()), Blksize: blockSize,
		// The kernel decodes 32 bits: what Mkdev gives for majors below 4096.
		Rdev:  uint32(ino.Rdev),
		Atime: sec, Mtime: sec, Ctime: sec, Atimensec: nsec, Mtimensec: nsec, Ctimensec: nsec,
	}
}

func setEntry(ino *erofs.Inode, out *gofuse.EntryOut) {
	out.NodeId = ino.Nid
	setAttr(ino, &out.Attr)
	out.EntryValid, out.AttrValid = forever, forever
}

func (t *treeFS) Lookup(
	_ <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut,
) gofuse.Status {
	nid, err := t.tree.Lookup(h.NodeId, name)
	if errors.Is(err, fs.ErrNotExist) {
		// OK with node 0: there is no such name, and never will be.
		out.EntryValid = forever
		return gofuse.OK
	}
	if err != nil {
		return errno(err)
	}
	ino, err := t.tree.Inode(nid)
	if err != nil {
		return errno(err)
	}
	setEntry(&ino, out)
	return gofuse.OK
}

func (t *treeFS) GetAttr(
	_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut,
) gofuse.Status {
	ino, err := t.tree.Inode(in.NodeId)
	if err != nil {
		return errno(err)
	}
	setAttr(&ino, &out.Attr)
	out.AttrValid = forever
	return gofuse.OK
}

func (t *treeFS) Readlink(_ <-chan struct{}, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	target, err := t.tree.Readlink(h.NodeId)
	return []byte(target), errno(err)
}

func (t *treeFS) StatFs(
	_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut,
) gofuse.Status {
	statfs(out, t.length)
	return gofuse.OK
}
