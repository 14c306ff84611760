package index

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Draft returns what the index file was made of. It is in memory, some 400 bytes a file: more than
// most files are an error.
func (l *Layer) Draft(most int) (*Draft, error) {
	d, _, err := l.draft(most)
	if err != nil {
		return nil, fmt.Errorf("draft of layer %s: %w", l.header.Layer, err)
	}
	return d, nil
}

// draft is Draft, and returns the nodes by nid as well.
func (l *Layer) draft(most int) (*Draft, map[uint64]*erofs.Node, error) {
	if l.Inodes() > int64(most) {
		return nil, nil, fmt.Errorf("more than %d files", most)
	}
	spans, err := l.Spans()
	if err != nil {
		return nil, nil, err
	}
	implicit, err := l.Implicit()
	if err != nil {
		return nil, nil, err
	}
	r := drafter{tree: l.tree.Buffered(), nodes: map[uint64]*erofs.Node{}, most: most}
	root, err := r.node(l.tree.Root())
	if err != nil {
		return nil, nil, err
	}
	for len(r.todo) > 0 {
		nid := r.todo[len(r.todo)-1]
		r.todo = r.todo[:len(r.todo)-1]
		if err := r.directory(nid); err != nil {
			return nil, nil, err
		}
	}
	for _, nid := range implicit {
		if n := r.nodes[nid]; n != nil {
			n.Implicit = true
		}
	}
	return &Draft{Header: l.header.Header, Root: root, Spans: spans}, r.nodes, nil
}

// drafter makes nodes of inodes.
type drafter struct {
	tree  *erofs.Tree
	nodes map[uint64]*erofs.Node
	todo  []uint64 // directories
	most  int      // nodes
}

func (r *drafter) directory(nid uint64) error {
	dir, failed := r.nodes[nid], error(nil)
	err := r.tree.ReadDir(nid, 0, func(e erofs.Dirent) bool {
		if e.Name != "." && e.Name != ".." {
			dir.Children[e.Name], failed = r.node(e.Nid)
		}
		return failed == nil
	})
	return errors.Join(failed, err)
}

func (r *drafter) node(nid uint64) (*erofs.Node, error) {
	if n := r.nodes[nid]; n != nil {
		return n, nil
	}
	ino, err := r.tree.Inode(nid)
	if err != nil {
		return nil, err
	}
	n := &erofs.Node{Mode: ino.Mode, UID: ino.UID, GID: ino.GID, Mtime: ino.Mtime, Rdev: ino.Rdev}
	r.nodes[nid] = n
	if len(r.nodes) > r.most {
		return nil, fmt.Errorf("more than %d files", r.most)
	}
	err = r.tree.Xattrs(nid, func(name string, value []byte) bool {
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = string(value)
		return true
	})
	if err != nil {
		return nil, err
	}
	switch ino.Type() {
	case erofs.Directory:
		n.Children = map[string]*erofs.Node{}
		r.todo = append(r.todo, nid)
	case erofs.Symlink:
		n.Target, err = r.tree.Readlink(nid)
	case erofs.Regular:
		n.Size = ino.Size
		err = r.tree.Extents(ino, 0, ino.Size, func(e erofs.Extent) error {
			addExtent(n, e)
			return nil
		})
	}
	return n, err
}

// addExtent adds what erofs.Tree.Extents reports to a file's extents. What lies in the tree comes
// in parts.
func addExtent(n *erofs.Node, e erofs.Extent) {
	if e.Data == nil {
		if e.Device != erofs.Hole {
			n.Extents = append(n.Extents, e)
		}
		return
	}
	if i := len(n.Extents) - 1; i >= 0 {
		last := &n.Extents[i]
		if last.Data != nil && last.File+last.Size == e.File {
			last.Data = append(last.Data, e.Data...)
			last.Size += e.Size
			return
		}
	}
	e.Data = bytes.Clone(e.Data)
	n.Extents = append(n.Extents, e)
}
