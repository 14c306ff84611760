package erofs

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Same returns nil where t is the tree that root describes and implicit are its directories with
// Node.Implicit, else an error that wraps ErrCorrupt and names the first file that differs. Check
// has to accept t. No node of root's may be used elsewhere meanwhile.
func (t *Tree) Same(root *Node, implicit []uint64) error {
	c := comparer{tree: t.Buffered(), seen: &Plan{}, linked: map[uint64]*Node{},
		implicit: map[uint64]bool{}}
	for _, nid := range implicit {
		c.implicit[nid] = true
	}
	c.todo = []named{{"/", rootNid, root}}
	for len(c.todo) > 0 {
		f := c.todo[len(c.todo)-1]
		c.todo = c.todo[:len(c.todo)-1]
		if err := c.file(&f); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return nil
}

// comparer walks a tree and the nodes that it ought to have.
type comparer struct {
	tree     *Tree
	seen     *Plan            // the plan of the nodes that were met
	linked   map[uint64]*Node // of inodes with several links
	implicit map[uint64]bool
	todo     []named
}

// named is a file that is still to be compared.
type named struct {
	path string
	nid  uint64
	node *Node
}

func (c *comparer) file(f *named) error {
	n := f.node
	if n.at.plan == c.seen {
		if n.at.off != int64(f.nid) {
			return corrupt("is not the hard link that it should be")
		}
		return nil
	}
	n.at = place{plan: c.seen, off: int64(f.nid)}
	ino, err := c.tree.inode(f.nid)
	if err != nil {
		return err
	}
	if ino.Nlink > 1 && ino.Type() != Directory {
		if c.linked[f.nid] != nil {
			return corrupt("is a hard link and should not be")
		}
		c.linked[f.nid] = n
	}
	if err := c.attributes(&ino, n); err != nil {
		return err
	}
	switch ino.Type() {
	case Directory:
		return c.directory(f)
	case Symlink:
		if target, err := c.tree.readlink(f.nid); err != nil || target != n.Target {
			return corrupt("target %.100q, should be %.100q (%v)", target, n.Target, err)
		}
	case Regular:
		return c.content(&ino, n)
	}
	return nil
}

func (c *comparer) attributes(ino *Inode, n *Node) error {
	want := n.Mtime
	if want.IsZero() {
		want = time.Unix(0, 0)
	}
	isDevice := ino.Type() == CharDevice || ino.Type() == BlockDevice
	switch {
	case ino.Mode != n.Mode:
		return corrupt("mode %#o, should be %#o", ino.Mode, n.Mode)
	case ino.UID != n.UID || ino.GID != n.GID:
		return corrupt("owner %d:%d, should be %d:%d", ino.UID, ino.GID, n.UID, n.GID)
	case !ino.Mtime.Equal(want):
		return corrupt("mtime %v, should be %v", ino.Mtime, want)
	case isDevice && ino.Rdev != uint64(uint32(n.Rdev)):
		return corrupt("device number %#x, should be %#x", ino.Rdev, n.Rdev)
	case ino.Type() == Regular && ino.Size != n.Size:
		return corrupt("size %d, should be %d", ino.Size, n.Size)
	case ino.Type() == Directory && c.implicit[ino.Nid] != n.Implicit:
		return corrupt("implicit: %t, should be %t", c.implicit[ino.Nid], n.Implicit)
	}
	return c.xattrs(ino, n)
}

func (c *comparer) xattrs(ino *Inode, n *Node) error {
	count, other := 0, ""
	err := c.tree.eachXattr(ino.Nid, func(name string, value []byte) bool {
		if want, ok := n.Xattrs[name]; !ok || want != string(value) {
			other = name
		}
		count++
		return other == ""
	})
	for name := range n.Xattrs {
		if _, _, ok := splitXattr(name); ok {
			count--
		}
	}
	if err == nil && (other != "" || count != 0) {
		err = corrupt("other extended attributes (%q)", other)
	}
	return err
}

func (c *comparer) directory(f *named) error {
	count, extra := 0, ""
	dir := strings.TrimSuffix(f.path, "/") + "/"
	err := c.tree.ReadDir(f.nid, 0, func(e Dirent) bool {
		if e.Name == "." || e.Name == ".." {
			return true
		}
		child := f.node.Children[e.Name]
		if child == nil {
			extra = e.Name
			return false
		}
		count++
		c.todo = append(c.todo, named{dir + e.Name, e.Nid, child})
		return true
	})
	switch {
	case err != nil:
		return err
	case extra != "":
		return corrupt("has %.255q and should not", extra)
	case count != len(f.node.Children):
		return corrupt("has %d entries, should have %d", count, len(f.node.Children))
	}
	return nil
}

// content compares where a regular file's bytes lie.
func (c *comparer) content(ino *Inode, n *Node) error {
	rest := n.Extents
	return c.tree.Extents(*ino, 0, ino.Size, func(e Extent) error {
		for e.Size > 0 {
			want, left := nextPiece(e.File, n.Size, rest)
			rest = left
			size := min(e.Size, want.Size)
			same := e.Device == want.Device && (want.Data == nil || want.Device > 0)
			if e.Data != nil {
				same = want.Data != nil && bytes.Equal(e.Data[:size], want.Data[:size])
			}
			if !same {
				return corrupt("its bytes at %d lie elsewhere", e.File)
			}
			e.File, e.Size = e.File+size, e.Size-size
			if e.Data != nil {
				e.Data = e.Data[size:]
			} else if e.Device != Hole {
				e.Device += size
			}
		}
		return nil
	})
}

// nextPiece returns what extents have from off on, which may be a hole, and those that are not
// behind it.
func nextPiece(off, end int64, extents []Extent) (Extent, []Extent) {
	i := slices.IndexFunc(extents, func(e Extent) bool { return e.File+e.Size > off })
	if i < 0 {
		return Extent{File: off, Size: end - off, Device: Hole}, nil
	}
	e := extents[i]
	cut := off - e.File
	switch {
	case cut < 0:
		return Extent{File: off, Size: -cut, Device: Hole}, extents[i:]
	case e.Data != nil:
		e.Data = e.Data[cut:]
	}
	if e.Data == nil || e.Device > 0 {
		e.Device += cut
	}
	e.File, e.Size = off, e.Size-cut
	return e, extents[i:]
}
