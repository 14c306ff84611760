package indextest

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// SectionAt is where in an index file's header the records of its sections lie, of SectionSize
// bytes each, offset and size first: tree, spans, implicit directories, content digests.
const (
	SectionAt   = 200
	SectionSize = 48
)

// Resign makes header and digests fit to an index file that was changed: what a forger would do.
func Resign(b []byte) []byte {
	le := binary.LittleEndian
	for i := range 3 { // content digests are not in the file
		at := b[SectionAt+i*SectionSize:]
		off, size := le.Uint64(at), le.Uint64(at[8:])
		if off <= uint64(len(b)) && size <= uint64(len(b))-off {
			sum := sha256.Sum256(b[off : off+size])
			copy(at[16:], sum[:])
		}
	}
	clear(b[16:20])
	le.PutUint32(b[16:], crc32.Checksum(b[:index.HeaderSize], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// LookupPath returns the nid of a path of a tree.
func LookupPath(t testing.TB, tree *erofs.Tree, p string) uint64 {
	t.Helper()
	nid := tree.Root()
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		var err error
		if nid, err = tree.Lookup(nid, name); err != nil {
			t.Fatal(err)
		}
	}
	return nid
}

// ReadAll reads all that an index has to say by every method, and returns how many of the calls
// were refused. It goes into each directory once.
func ReadAll(x *index.Layer) (refused int) {
	count := func(err error) {
		if err != nil {
			refused++
		}
	}
	tree := x.Tree()
	seen := map[uint64]bool{}
	var visit func(nid uint64, depth int)
	visit = func(nid uint64, depth int) {
		if seen[nid] || depth > 100 || len(seen) > 100000 {
			return
		}
		seen[nid] = true
		ino, err := tree.Inode(nid)
		count(err)
		var names []string
		count(tree.Xattrs(nid, func(name string, _ []byte) bool {
			names = append(names, name)
			return true
		}))
		for _, name := range names {
			_, err := tree.Xattr(nid, name)
			count(err)
		}
		switch ino.Type() {
		case erofs.Symlink:
			_, err := tree.Readlink(nid)
			count(err)
		case erofs.Regular:
			count(tree.Extents(ino, 0, 1<<20, func(erofs.Extent) error { return nil }))
			count(tree.Extents(ino, max(ino.Size-1, 0), 10,
				func(erofs.Extent) error { return nil }))
		case erofs.Directory:
			var children []erofs.Dirent
			count(tree.ReadDir(nid, 0, func(e erofs.Dirent) bool {
				children = append(children, e)
				return len(children) < 10000
			}))
			for _, e := range children {
				found, err := tree.Lookup(nid, e.Name)
				if err != nil || found != e.Nid {
					refused++
				}
				visit(e.Nid, depth+1)
			}
			count(tree.Paths([]uint64{nid}, func(uint64, string) error { return nil }))
		}
	}
	visit(tree.Root(), 0)
	_, err := x.Spans()
	count(err)
	implicit, err := x.Implicit()
	count(err)
	count(tree.Paths(implicit, func(uint64, string) error { return nil }))
	return refused
}

// Allocated returns how many bytes fn allocates, whether freed again or not.
func Allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
