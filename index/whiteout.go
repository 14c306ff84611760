package index

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// xattrOpaque is the attribute by which overlayfs hides what lower layers have in a directory.
const (
	xattrOpaque = "trusted.overlay.opaque"
	opaqueYes   = "y"
)

// Marks tells what of a layer's tree says something about layers below it.
type Marks struct {
	// Any: there are whiteouts, or opaque directories.
	Any bool
	// Unsure: below an opaque directory is one that the tar implies. Where no layer is below,
	// containerd keeps that one or removes it, depending on the order in the tar.
	Unsure bool
}

// Marks looks through the whole tree.
func (l *Layer) Marks() (Marks, error) {
	m := marker{tree: l.tree.Buffered(), implicit: map[uint64]bool{}}
	nids, err := l.Implicit()
	if err != nil {
		return Marks{}, err
	}
	for _, nid := range nids {
		m.implicit[nid] = true
	}
	m.todo = []markedDir{{nid: l.tree.Root()}}
	for len(m.todo) > 0 {
		d := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		if m.dirs++; m.dirs > l.Inodes() {
			return Marks{}, fmt.Errorf("whiteouts of layer %s: %w", l.header.Layer,
				corrupt("directories in a circle"))
		}
		if err := m.directory(d); err != nil {
			return Marks{}, fmt.Errorf("whiteouts of layer %s: %w", l.header.Layer, err)
		}
	}
	return m.Marks, nil
}

// marker walks a tree and fills in Marks.
type marker struct {
	Marks
	tree     *erofs.Tree
	implicit map[uint64]bool
	todo     []markedDir
	dirs     int64 // that were met
}

type markedDir struct {
	nid    uint64
	opaque bool // it, or a directory above it
}

func (m *marker) directory(d markedDir) error {
	ino, err := m.tree.Inode(d.nid)
	if err != nil {
		return err
	}
	m.Unsure = m.Unsure || d.opaque && m.implicit[d.nid]
	if ino.HasXattrs {
		opaque := false
		err := m.tree.Xattrs(d.nid, func(name string, value []byte) bool {
			opaque = name == xattrOpaque && string(value) == opaqueYes
			return !opaque
		})
		if err != nil {
			return err
		}
		m.Any, d.opaque = m.Any || opaque, d.opaque || opaque
	}
	var devices []uint64
	err = m.tree.ReadDir(d.nid, 0, func(e erofs.Dirent) bool {
		switch {
		case e.Name == "." || e.Name == "..":
		case e.Type == erofs.Directory:
			m.todo = append(m.todo, markedDir{e.Nid, d.opaque})
		case e.Type == erofs.CharDevice && !m.Any:
			devices = append(devices, e.Nid)
		}
		return true
	})
	for _, nid := range devices {
		ino, inoErr := m.tree.Inode(nid)
		m.Any, err = m.Any || isWhiteout(ino.Mode, ino.Rdev), errors.Join(err, inoErr)
	}
	return err
}

func isWhiteout(mode uint32, rdev uint64) bool {
	return mode == erofs.CharDevice.Mode() && rdev == 0
}

// Bare writes a copy of l's index file that has neither whiteouts nor opaque directories: what
// containerd unpacks where no layer is below. Its nids are not l's.
func Bare(w io.Writer, l *Layer) error {
	return l.rewrite(w, func(nodes map[uint64]*erofs.Node) {
		for _, n := range nodes {
			if n.Xattrs[xattrOpaque] == opaqueYes {
				delete(n.Xattrs, xattrOpaque)
			}
			for name, child := range n.Children {
				if isWhiteout(child.Mode, child.Rdev) {
					delete(n.Children, name)
				}
			}
		}
	})
}

// MaxRewritten is how many files a tree has at most of which a copy with other names or
// extended attributes is made, because all of it is in memory meanwhile, some 400 bytes a file.
const MaxRewritten = 1 << 17

// rewrite writes an index of the same layer with the nodes that change leaves of l's, which it gets
// by nid.
func (l *Layer) rewrite(w io.Writer, change func(nodes map[uint64]*erofs.Node)) error {
	d, nodes, err := l.draft(MaxRewritten)
	if err != nil {
		return fmt.Errorf("copy the index of layer %s: %w", l.header.Layer, err)
	}
	change(nodes)
	out := bufio.NewWriter(w)
	if _, err := Write(out, d); err != nil {
		return err
	}
	return out.Flush()
}
