package tartree

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// slab is how many nodes, extents or bytes of names are allocated at once.
const (
	nodeSlab = 256
	nameSlab = 64 << 10
)

// tree is the file system that the entries are applied to. Its operations do
// to inodes in memory what Linux's system calls, called by root, do to those on
// ext4.
type tree struct {
	root  *erofs.Node
	meter *meter

	way     []*erofs.Node // scratch of lookup
	nodes   []erofs.Node
	extents []erofs.Extent
	names   strings.Builder
	keys    map[string]string // names of xattrs
	last    measured          // the inode whose xattrs were changed last
}

func newTree(m *meter) *tree {
	return &tree{
		root:  &erofs.Node{Mode: unix.S_IFDIR | 0o755, Mtime: time.Unix(0, 0)},
		meter: m,
		keys:  map[string]string{},
	}
}

func isType(n *erofs.Node, t uint32) bool { return n.Mode&unix.S_IFMT == t }
func isDir(n *erofs.Node) bool            { return isType(n, unix.S_IFDIR) }
func isLink(n *erofs.Node) bool           { return isType(n, unix.S_IFLNK) }

// create makes an inode of root's, with what Linux lets it inherit from its
// directory: the group where that has the setgid bit, and default ACLs.
func (t *tree) create(dir *erofs.Node, name string, mode uint32) (*erofs.Node, error) {
	if len(t.nodes) == 0 {
		t.nodes = make([]erofs.Node, nodeSlab)
	}
	n := &t.nodes[0]
	t.nodes = t.nodes[1:]
	n.Mode = mode
	if dir.Mode&unix.S_ISGID != 0 {
		n.GID = dir.GID
	}
	if err := t.inheritACL(dir, n); err != nil {
		return nil, err
	}
	return n, t.enter(dir, name, n)
}

// enter gives an inode a name.
func (t *tree) enter(dir *erofs.Node, name string, n *erofs.Node) error {
	if len(name) > maxName {
		return unix.ENAMETOOLONG
	}
	if dir.Children[name] != nil {
		return unix.EEXIST
	}
	name, err := t.keep(name)
	if err != nil {
		return err
	}
	if dir.Children == nil {
		dir.Children = map[string]*erofs.Node{}
	}
	dir.Children[name] = n
	return nil
}

// keep returns a copy of s. A string of archive/tar's can be a part of a much
// longer one, which would stay in memory with it.
func (t *tree) keep(s string) (string, error) {
	if err := t.meter.names(len(s)); err != nil {
		return "", err
	}
	if len(s) > nameSlab/16 {
		return strings.Clone(s), nil
	}
	if t.names.Cap()-t.names.Len() < len(s) {
		t.names = strings.Builder{}
		t.names.Grow(nameSlab)
	}
	at := t.names.Len()
	t.names.WriteString(s) // never grows: earlier strings share the buffer
	return t.names.String()[at:], nil
}

// extent returns a list of one extent.
func (t *tree) extent(e erofs.Extent) []erofs.Extent {
	if len(t.extents) == 0 {
		t.extents = make([]erofs.Extent, nodeSlab)
	}
	list := t.extents[:1:1]
	t.extents = t.extents[1:]
	list[0] = e
	return list
}
