package tartree

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

const (
	xattrAccessACL  = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
)

// The form of an ACL as an xattr, from linux/posix_acl_xattr.h: a version of four
// bytes, then entries of tag (2 bytes), permissions (2) and id (4), little endian.
const (
	aclVersion   = 2
	aclHeader    = 4
	aclEntry     = 8
	aclUserObj   = 0x01
	aclUser      = 0x02
	aclGroupObj  = 0x04
	aclGroup     = 0x08
	aclMask      = 0x10
	aclOther     = 0x20
	aclUndefined = 1<<32 - 1 // the id of entries that have none
)

// setACL sets one of the two ACLs. An access ACL that says no more than the
// permission bits is not kept; the bits themselves are set by chmod afterwards.
func (t *tree) setACL(n *erofs.Node, key, value string) error {
	if isLink(n) {
		return nil // not supported, and so left out
	}
	acl, extended, err := parseACL(value)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	if key == xattrDefaultACL && !isDir(n) {
		if acl == "" {
			return nil
		}
		return unix.EACCES
	}
	if acl == "" || key == xattrAccessACL && !extended {
		t.dropXattr(n, key)
		return nil
	}
	return t.storeXattr(n, key, acl)
}

// parseACL checks an ACL and returns it with its unused ids undefined, as Linux
// returns it; "" for none at all. It is extended where it says more than
// permission bits can.
func parseACL(v string) (acl string, extended bool, err error) {
	b := []byte(v)
	switch {
	case len(b) == 0:
		return "", false, nil
	case len(b) < aclHeader:
		return "", false, unix.EINVAL
	case binary.LittleEndian.Uint32(b) != aclVersion:
		return "", false, unix.EOPNOTSUPP
	case (len(b)-aclHeader)%aclEntry != 0:
		return "", false, unix.EINVAL
	case len(b) == aclHeader:
		return "", false, nil
	}
	last, named := uint16(0), false
	for e := b[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		tag := binary.LittleEndian.Uint16(e)
		perm := binary.LittleEndian.Uint16(e[2:])
		id := binary.LittleEndian.Uint32(e[4:])
		if perm > 7 || !aclFollows(last, tag, named) {
			return "", false, unix.EINVAL
		}
		switch tag {
		case aclUser, aclGroup:
			if id == aclUndefined {
				return "", false, unix.EINVAL
			}
			named = true
		default:
			binary.LittleEndian.PutUint32(e[4:], aclUndefined)
		}
		extended = extended || named || tag == aclMask
		last = tag
	}
	if last != aclOther {
		return "", false, unix.EINVAL
	}
	return string(b), extended, nil
}

// aclFollows tells whether an entry may stand behind one with the tag last: the
// owner, users, the group, groups, the mask, others, in this order; the mask may
// be missing where no user and no group is named.
func aclFollows(last, tag uint16, named bool) bool {
	switch tag {
	case aclUserObj:
		return last == 0
	case aclUser, aclGroupObj:
		return last == aclUserObj || last == aclUser
	case aclGroup:
		return last == aclGroupObj || last == aclGroup
	case aclMask:
		return last == aclGroupObj || last == aclGroup
	case aclOther:
		return last == aclMask || last == aclGroupObj && !named
	}
	return false
}

// maskACL returns an access ACL after a chmod to mode: the group's bits go to
// the mask, or where there is none, to the group.
func maskACL(acl string, mode uint32) string {
	b := []byte(acl)
	group := -1
	for at := aclHeader; at < len(b); at += aclEntry {
		perm := b[at+2:]
		switch binary.LittleEndian.Uint16(b[at:]) {
		case aclUserObj:
			binary.LittleEndian.PutUint16(perm, uint16(mode>>6&7))
		case aclGroupObj:
			if group < 0 {
				group = at
			}
		case aclMask:
			group = at
		case aclOther:
			binary.LittleEndian.PutUint16(perm, uint16(mode&7))
		}
	}
	if group >= 0 {
		binary.LittleEndian.PutUint16(b[group+2:], uint16(mode>>3&7))
	}
	return string(b)
}

// inheritACL gives a new inode the ACLs that its directory's default ACL means it
// to have.
func (t *tree) inheritACL(dir, n *erofs.Node) error {
	def, ok := dir.Xattrs[xattrDefaultACL]
	if !ok || isLink(n) {
		return nil
	}
	_, extended, err := parseACL(def)
	if err != nil {
		return err
	}
	if extended {
		if err := t.storeXattr(n, xattrAccessACL, maskACL(def, n.Mode)); err != nil {
			return err
		}
	}
	if !isDir(n) {
		return nil
	}
	return t.storeXattr(n, xattrDefaultACL, def)
}
