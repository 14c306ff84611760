package tartree

import (
	"fmt"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// KeptSize is the size of the largest file that is kept in the tree for what it is: the runtime
// reads it of every image, to look up users and groups, before anything runs in a container.
const KeptSize = 64 << 10

// isKept tells a file that is kept in the tree if it is not too large.
func isKept(dir, name string) bool {
	return dir == "/etc" && (name == "passwd" || name == "group")
}

// content follows the data of one regular file as it comes by on the tape, and copies what the tree
// keeps itself.
type content struct {
	node   *erofs.Node
	copies []copied
	copy   int // the first of copies that is not through
}

// copied is a range of the stream that goes into the tree.
type copied struct {
	off, size int64 // in the stream
	extent    int   // of the node's
	at        int64 // in the extent's data
}

// begin describes where the file's data lies, which is the next in the stream; keep: if it is not
// too large, in the tree as well.
func (c *content) begin(n *erofs.Node, size int64, d stored, off int64, keep bool, t *tree) error {
	if limit := t.meter.lim.FileSize; size > limit {
		return fmt.Errorf("file of %d bytes: %w", size, over("FileSize", limit))
	}
	n.Size = size
	*c = content{node: n, copies: c.copies[:0]}
	if d.sparse {
		return c.place(t.meter, d.pieces, off)
	}
	if size == 0 {
		return nil
	}
	n.Extents = t.extent(erofs.Extent{Device: off, Size: size})
	if !keep || size > KeptSize {
		return nil
	}
	n.Extents[0].Data = make([]byte, size)
	c.copies = append(c.copies, copied{off: off, size: size})
	return t.meter.tree(size)
}

// place maps the pieces of a sparse file, which lie behind each other from at on in the stream. All
// extents begin on a block in the file, and end on one or with the file. What can lie so in place
// does; the rest is kept in the tree, in whole blocks, with zeros where the file has a hole.
func (c *content) place(m *meter, pieces []piece, at int64) error {
	if err := m.pieces(len(pieces)); err != nil {
		return err
	}
	for _, p := range pieces {
		end := p.off + p.size
		from, to := end, end // what is in place
		if (at-p.off)%erofs.BlockSize == 0 {
			from = min(end, roundUp(p.off))
			if to != c.node.Size {
				to = max(from, roundDown(to))
			}
		}
		if err := c.copyIn(m, p.off, from, at); err != nil {
			return err
		}
		if from < to {
			c.node.Extents = append(c.node.Extents,
				erofs.Extent{File: from, Device: at + from - p.off, Size: to - from})
		}
		if err := c.copyIn(m, to, end, at+to-p.off); err != nil {
			return err
		}
		at += p.size
	}
	return nil
}

// copyIn gives the file's range from…to, which lies at off in the stream, room in
// the tree.
func (c *content) copyIn(m *meter, from, to, off int64) error {
	if from == to {
		return nil
	}
	first, last := roundDown(from), min(roundUp(to), c.node.Size)
	var e *erofs.Extent
	if k := len(c.node.Extents) - 1; k >= 0 {
		e = &c.node.Extents[k]
	}
	// The piece before can have ended in the same block, or just before it.
	if e == nil || e.Data == nil || e.File+e.Size < first {
		c.node.Extents = append(c.node.Extents, erofs.Extent{File: first})
		e = &c.node.Extents[len(c.node.Extents)-1]
	}
	more := last - (e.File + e.Size)
	if err := m.tree(more); err != nil {
		return fmt.Errorf("sparse file with pieces that are not aligned: %w", err)
	}
	e.Data = append(e.Data, make([]byte, more)...)
	e.Size += more
	c.copies = append(c.copies, copied{off, to - from, len(c.node.Extents) - 1, from - e.File})
	return nil
}

func roundUp(n int64) int64   { return n + (-n & (erofs.BlockSize - 1)) }
func roundDown(n int64) int64 { return n &^ (erofs.BlockSize - 1) }

// write takes the data that lies at off in the stream.
func (c *content) write(off int64, p []byte) {
	for end := off + int64(len(p)); c.copy < len(c.copies) && c.copies[c.copy].off < end; c.copy++ {
		k := c.copies[c.copy]
		from, to := max(off, k.off), min(end, k.off+k.size)
		copy(c.node.Extents[k.extent].Data[k.at+from-k.off:], p[from-off:to-off])
		if end < k.off+k.size {
			break // the rest comes with the next call
		}
	}
}
