package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Sizes of EROFS's inline attributes: a header of 12 bytes, then entries of 4
// bytes, name suffix and value, each padded to 4. The inode counts them in units of
// 4 bytes in 16 bits, the header as one.
const (
	xattrHeader  = 12
	xattrEntry   = 4
	maxXattrArea = xattrHeader + (1<<16-2)*4
	maxXattrName = 255       // XATTR_NAME_MAX
	maxXattrVal  = 1<<16 - 1 // e_value_size has 16 bits
)

// xattrPrefix is a name prefix that EROFS stores as a number (EROFS_XATTR_INDEX_*).
// A whole name has nothing after the prefix.
type xattrPrefix struct {
	index  uint8
	prefix string
	whole  bool
}

func xattrPrefixes() [5]xattrPrefix {
	return [5]xattrPrefix{
		{1, "user.", false},
		{2, "system.posix_acl_access", true},
		{3, "system.posix_acl_default", true},
		{4, "trusted.", false},
		{6, "security.", false},
	}
}

// splitXattr returns a name's prefix number and suffix; ok is false for names
// that EROFS has no number for.
func splitXattr(name string) (index uint8, suffix string, ok bool) {
	for _, p := range xattrPrefixes() {
		if s, has := strings.CutPrefix(name, p.prefix); has && (s == "") == p.whole {
			return p.index, s, true
		}
	}
	return 0, "", false
}

// joinXattr is splitXattr's inverse; ok is false for what it never returns.
func joinXattr(index uint8, suffix []byte) (name string, ok bool) {
	for _, p := range xattrPrefixes() {
		if p.index == index {
			return p.prefix + string(suffix), (len(suffix) == 0) == p.whole
		}
	}
	return "", false
}

// xattrAreaSize returns the bytes that attributes take behind their inode, 0
// when there are none that EROFS can hold.
func xattrAreaSize(xattrs map[string]string) (int64, error) {
	n := int64(0)
	for name, value := range xattrs {
		_, suffix, ok := splitXattr(name)
		if !ok {
			continue
		}
		if len(name) > maxXattrName || strings.IndexByte(name, 0) >= 0 {
			return 0, fmt.Errorf("extended attribute %.64q: a name has 1 to %d bytes other than NUL",
				name, maxXattrName)
		}
		if len(value) > maxXattrVal {
			return 0, fmt.Errorf("extended attribute %q has %d bytes: EROFS holds at most %d",
				name, len(value), maxXattrVal)
		}
		n += alignUp(xattrEntry+int64(len(suffix))+int64(len(value)), 4)
	}
	if n == 0 {
		return 0, nil
	}
	if n += xattrHeader; n > maxXattrArea {
		return 0, fmt.Errorf("extended attributes take %d bytes: EROFS holds at most %d of one file",
			n, maxXattrArea)
	}
	return n, nil
}

// xattrCount encodes an area's size as i_xattr_icount.
func xattrCount(area int64) uint16 {
	if area == 0 {
		return 0
	}
	return uint16((area-xattrHeader)/4 + 1)
}

// xattrArea is xattrCount's inverse, in bytes.
func xattrArea(count uint16) int64 {
	if count == 0 {
		return 0
	}
	return xattrHeader + 4*(int64(count)-1)
}

// appendXattrs appends the area of attributes, in the order of their names.
func appendXattrs(b []byte, xattrs map[string]string) []byte {
	names := make([]string, 0, len(xattrs))
	for name := range xattrs {
		if _, _, ok := splitXattr(name); ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return b
	}
	slices.Sort(names)
	b = append(b, make([]byte, xattrHeader)...)
	for _, name := range names {
		index, suffix, _ := splitXattr(name)
		value := xattrs[name]
		b = append(b, uint8(len(suffix)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, suffix...), value...)
		for n := len(suffix) + len(value); n%4 != 0; n++ {
			b = append(b, 0)
		}
	}
	return b
}

// eachXattr calls fn for the attributes of an area until it returns false. The
// value is a part of area.
func eachXattr(area []byte, fn func(name string, value []byte) bool) error {
	if len(area) == 0 {
		return nil
	}
	if len(area) <= xattrHeader || !bytes.Equal(area[:xattrHeader], make([]byte, xattrHeader)) {
		return corrupt("extended attributes: header")
	}
	for b := area[xattrHeader:]; len(b) > 0; {
		if len(b) < xattrEntry {
			return corrupt("extended attributes: entry of %d bytes", len(b))
		}
		suffix := int(b[0])
		value := int(binary.LittleEndian.Uint16(b[2:]))
		size := int(alignUp(int64(xattrEntry+suffix+value), 4))
		if size > len(b) {
			return corrupt("extended attributes: entry of %d bytes in %d", size, len(b))
		}
		name, ok := joinXattr(b[1], b[xattrEntry:xattrEntry+suffix])
		if !ok || len(name) > maxXattrName || strings.IndexByte(name, 0) >= 0 {
			return corrupt("extended attributes: name %.64q with prefix %d",
				b[xattrEntry:xattrEntry+suffix], b[1])
		}
		if !fn(name, b[xattrEntry+suffix:xattrEntry+suffix+value]) {
			return nil
		}
		b = b[size:]
	}
	return nil
}
