package tartree

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

const (
	xattrUser       = "user."
	xattrTrusted    = "trusted."
	xattrSecurity   = "security."
	xattrCapability = "security.capability"

	// maxXattrName is XATTR_NAME_MAX, maxXattrValue the largest that EROFS can
	// hold: one byte less than XATTR_SIZE_MAX.
	maxXattrName  = 255
	maxXattrValue = 1<<16 - 1

	// xattrSize is what an xattr counts for in Limits.NameBytes beside its value, and beside its
	// name, which is kept once for all inodes: its place in the inode's map.
	xattrSize = 48

	permBits = 0o7777
)

// chown sets the owner. As in the system call, ids are 32 bits wide, one with all
// bits set leaves the owner as it is, and what is not a directory loses its
// capabilities. (The setuid bits, which it loses as well, are set again afterwards.)
func (t *tree) chown(n *erofs.Node, uid, gid int) {
	const unchanged = 1<<32 - 1
	if id := uint32(uid); id != unchanged {
		n.UID = id
	}
	if id := uint32(gid); id != unchanged {
		n.GID = id
	}
	if !isDir(n) {
		t.dropXattr(n, xattrCapability)
	}
}

func (t *tree) dropXattr(n *erofs.Node, key string) {
	value, ok := n.Xattrs[key]
	if !ok {
		return
	}
	t.xattrs(n).bytes -= int64(len(key) + len(value))
	if delete(n.Xattrs, key); len(n.Xattrs) == 0 {
		n.Xattrs = nil
	}
}

// measured is an inode with the bytes of its xattrs. The last one is kept, or setting n of them
// would take n² steps.
type measured struct {
	node  *erofs.Node
	bytes int64
}

// xattrs returns how much n has; whoever changes that keeps it true.
func (t *tree) xattrs(n *erofs.Node) *measured {
	if t.last.node != n {
		t.last = measured{node: n}
		for k, v := range n.Xattrs {
			t.last.bytes += int64(len(k) + len(v))
		}
	}
	return &t.last
}

// chmod sets the permission bits, and with them the access ACL's. Symbolic links
// keep theirs.
func chmod(n *erofs.Node, mode uint32) {
	if isLink(n) {
		return
	}
	n.Mode = n.Mode&unix.S_IFMT | mode&permBits
	if acl, ok := n.Xattrs[xattrAccessACL]; ok {
		n.Xattrs[xattrAccessACL] = maskACL(acl, mode)
	}
}

// setxattr sets an attribute that the tar names. It leaves out silently what
// containerd leaves out with a warning: trusted attributes, user attributes of what
// is neither a file nor a directory, and those that ext4 does not have.
func (t *tree) setxattr(n *erofs.Node, key, value string) error {
	switch {
	case strings.HasPrefix(key, xattrTrusted):
		return nil
	case key == "" || len(key) > maxXattrName:
		return unix.ERANGE
	case len(value) > maxXattrValue:
		return unix.E2BIG
	case key == xattrUser || key == xattrSecurity:
		return unix.EINVAL
	case key == xattrAccessACL || key == xattrDefaultACL:
		return t.setACL(n, key, value)
	case strings.HasPrefix(key, xattrUser):
		if !isDir(n) && !isType(n, unix.S_IFREG) {
			return nil
		}
	case key == xattrCapability:
		if value != "" && !validCapability(value) {
			return unix.EINVAL
		}
	case !strings.HasPrefix(key, xattrSecurity):
		return nil
	}
	return t.storeXattr(n, key, value)
}

// storeXattr keeps a copy of an attribute, within the limits.
func (t *tree) storeXattr(n *erofs.Node, key, value string) error {
	m := t.xattrs(n)
	size := m.bytes + int64(len(key)+len(value))
	if old, ok := n.Xattrs[key]; ok {
		size -= int64(len(key) + len(old))
	}
	if limit := t.meter.lim.XattrBytes; size > limit {
		return over("XattrBytes", limit)
	}
	if err := t.meter.names(xattrSize); err != nil {
		return err
	}
	value, err := t.keep(value)
	if err != nil {
		return err
	}
	known, ok := t.keys[key]
	if !ok {
		if known, err = t.keep(key); err != nil {
			return err
		}
		t.keys[known] = known
	}
	if n.Xattrs == nil {
		n.Xattrs = map[string]string{}
	}
	n.Xattrs[known] = value
	m.bytes = size
	return nil
}

// validCapability tells whether v is a struct vfs_cap_data of revision 2, or a
// vfs_ns_cap_data of revision 3, the only ones that Linux accepts
// (linux/capability.h). Revision 3 names the user that is root where the
// capabilities hold.
func validCapability(v string) bool {
	const (
		revisionMask, revision2, revision3 = 0xff000000, 0x02000000, 0x03000000
		size2, size3                       = 20, 24
	)
	if len(v) != size2 && len(v) != size3 {
		return false
	}
	magic := binary.LittleEndian.Uint32([]byte(v[:4]))
	switch magic & revisionMask {
	case revision2:
		return len(v) == size2
	case revision3:
		return len(v) == size3 && binary.LittleEndian.Uint32([]byte(v[size2:])) != 1<<32-1
	}
	return false
}
