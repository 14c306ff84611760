package index

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"
)

// Attr is what Patch can change of a directory.
type Attr struct {
	Mode     uint32 // permission bits; the type stays
	UID, GID uint32
	Mtime    time.Time
	Xattrs   map[string]string // to add; those that the directory has stay
}

// Patch writes a copy of l's index file in which the directories of the given
// nids have other attributes, and the digests in the header fit: for the
// directories that a layer's tar does not mention (Implicit), whose attributes
// are those of the layer below. The copy has l's nids, and is as long as the original, where no
// extended attribute is added.
func Patch(w io.Writer, l *Layer, attrs map[uint64]Attr) error {
	write := patch
	for _, a := range attrs {
		if len(a.Xattrs) > 0 {
			write = patchNodes
		}
	}
	if err := write(w, l, attrs); err != nil {
		return fmt.Errorf("patch index of layer %s: %w", l.header.Layer, err)
	}
	return nil
}

func patch(w io.Writer, l *Layer, attrs map[uint64]Attr) error {
	r := &patchReader{r: l.r}
	for nid, a := range attrs {
		p, err := l.tree.patchInode(nid, a)
		if err != nil {
			return fmt.Errorf("directory %d: %w", nid, err)
		}
		r.patches = append(r.patches, p)
	}
	slices.SortFunc(r.patches, func(a, b inodePatch) int { return cmp.Compare(a.off, b.off) })

	h := *l.header
	tree := &h.section[sectionTree]
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(r, tree.Off, tree.Size)); err != nil {
		return err
	}
	sum.Sum(tree.sum[:0])
	b, err := h.encode()
	if err != nil {
		return err
	}
	if _, err := w.Write(b[:]); err != nil {
		return err
	}
	n, err := io.Copy(w, io.NewSectionReader(r, HeaderSize, h.size-HeaderSize))
	if err == nil && n != h.size-HeaderSize {
		err = corrupt("the file ends at byte %d", HeaderSize+n)
	}
	return err
}

// patchNodes is Patch where inodes become longer.
func patchNodes(w io.Writer, l *Layer, attrs map[uint64]Attr) error {
	for nid := range attrs {
		if _, err := l.tree.directory(nid); err != nil {
			return fmt.Errorf("directory %d: %w", nid, err)
		}
	}
	return l.rewrite(w, func(nodes map[uint64]*Node) {
		for nid, a := range attrs {
			n := nodes[nid]
			if n == nil {
				continue // it is not of the tree: nobody sees it
			}
			n.Mode = modeDir | a.Mode&modePerm
			n.UID, n.GID, n.Mtime = a.UID, a.GID, a.Mtime
			for name, value := range a.Xattrs {
				if n.Xattrs == nil {
					n.Xattrs = map[string]string{}
				}
				if _, ok := n.Xattrs[name]; !ok {
					n.Xattrs[name] = value
				}
			}
		}
	})
}

// inodePatch replaces an inode.
type inodePatch struct {
	off int64 // in the file
	b   [inodeSize]byte
}

func (t *Tree) patchInode(nid uint64, a Attr) (inodePatch, error) {
	ino, err := t.directory(nid)
	if err != nil {
		return inodePatch{}, err
	}
	p := inodePatch{off: ino.offset()}
	if err := t.read(p.b[:], p.off); err != nil {
		return p, err
	}
	le := binary.LittleEndian
	le.PutUint16(p.b[4:], uint16(modeDir|a.Mode&modePerm))
	le.PutUint32(p.b[24:], a.UID)
	le.PutUint32(p.b[28:], a.GID)
	le.PutUint64(p.b[32:], uint64(a.Mtime.Unix()))
	le.PutUint32(p.b[40:], uint32(a.Mtime.Nanosecond()))
	return p, nil
}

// patchReader shows a file with patches over it.
type patchReader struct {
	r       io.ReaderAt
	patches []inodePatch // in the order of their offsets
}

// ReadAt implements io.ReaderAt.
func (r *patchReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.r.ReadAt(p, off)
	i, _ := slices.BinarySearchFunc(r.patches, off-inodeSize+1, func(p inodePatch, off int64) int {
		return cmp.Compare(p.off, off)
	})
	for ; i < len(r.patches) && r.patches[i].off < off+int64(n); i++ {
		q := &r.patches[i]
		if from := q.off - off; from >= 0 {
			copy(p[from:n], q.b[:])
		} else {
			copy(p[:n], q.b[-from:])
		}
	}
	return n, err
}
