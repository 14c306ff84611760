package erofs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// Patched returns a reader of t's file in which the directories of the given nids have the
// permission bits, owners and times of these nodes.
func (t *Tree) Patched(dirs map[uint64]*Node) (io.ReaderAt, error) {
	r := &patchReader{r: t.r}
	for nid, n := range dirs {
		p, err := t.patchInode(nid, n)
		if err != nil {
			return nil, fmt.Errorf("directory %d: %w", nid, err)
		}
		r.patches = append(r.patches, p)
	}
	slices.SortFunc(r.patches, func(a, b inodePatch) int { return cmp.Compare(a.off, b.off) })
	return r, nil
}

// inodePatch replaces an inode.
type inodePatch struct {
	off int64 // in the file
	b   [InodeSize]byte
}

func (t *Tree) patchInode(nid uint64, n *Node) (inodePatch, error) {
	ino, err := t.directory(nid)
	if err != nil {
		return inodePatch{}, err
	}
	p := inodePatch{off: ino.offset()}
	if err := t.read(p.b[:], p.off); err != nil {
		return p, err
	}
	le := binary.LittleEndian
	le.PutUint16(p.b[4:], uint16(modeDir|n.Mode&modePerm))
	le.PutUint32(p.b[24:], n.UID)
	le.PutUint32(p.b[28:], n.GID)
	le.PutUint64(p.b[32:], uint64(n.Mtime.Unix()))
	le.PutUint32(p.b[40:], uint32(n.Mtime.Nanosecond()))
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
	i, _ := slices.BinarySearchFunc(r.patches, off-InodeSize+1, func(p inodePatch, off int64) int {
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
