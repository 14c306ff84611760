package index

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// Draft is what a scan of a layer makes and Write turns into an index.
type Draft struct {
	Header
	Root  *Node
	Spans []Span
}

// Write writes the index file of d to w and returns its size in bytes. Equal
// drafts give equal bytes. The file is produced from front to back, twice, as
// the header holds digests of what follows it; memory beyond d's own is about 50
// bytes a node.
//
// Errors that are not w's say what of the layer EROFS cannot represent, by path.
func Write(w io.Writer, d *Draft) (int64, error) {
	p, err := newPlan(d)
	var n int64
	if err == nil {
		n, err = p.write(w)
	}
	if err != nil {
		return n, fmt.Errorf("write index of layer %s: %w", d.Layer, err)
	}
	return n, nil
}

func (p *plan) write(w io.Writer) (int64, error) {
	h := fileHeader{Header: p.draft.Header, size: headerSize}
	for i, emit := range []func(io.Writer) (int64, error){p.writeTree, p.writeSpans, p.writeImplicit} {
		if err := h.measure(i, emit); err != nil {
			return 0, err
		}
	}
	h.section[sectionDigests] = section{
		Range: Range{Off: p.draft.WindowsSize}, sum: sha256.Sum256(nil),
	}
	b, err := h.encode()
	if err != nil {
		return 0, err
	}
	if _, err := w.Write(b[:]); err != nil {
		return 0, err
	}
	total := int64(headerSize)
	for _, emit := range []func(io.Writer) (int64, error){p.writeTree, p.writeSpans, p.writeImplicit} {
		n, err := emit(w)
		if total += n; err != nil {
			return total, err
		}
	}
	return total, nil
}

// measure sets section i, which follows what was measured before, to what emit writes.
func (h *fileHeader) measure(i int, emit func(io.Writer) (int64, error)) error {
	sum := sha256.New()
	n, err := emit(sum)
	if err != nil {
		return err
	}
	h.section[i].Range = Range{Off: h.size, Size: n}
	sum.Sum(h.section[i].sum[:0])
	h.size += n
	return nil
}

// imageWriter writes an image from front to back and knows where it is.
type imageWriter struct {
	w     *bufio.Writer
	off   int64 // in the file
	block []byte
	zero  [BlockSize]byte
}

func (w *imageWriter) write(b []byte) {
	w.off += int64(len(b))
	_, _ = w.w.Write(b) // bufio keeps the first error for Flush
}

// seek writes zeros up to file offset off.
func (w *imageWriter) seek(off int64) {
	for w.off < off {
		w.write(w.zero[:min(off-w.off, BlockSize)])
	}
}

// writeTree writes the image from its superblock on, and returns its size.
func (p *plan) writeTree(w io.Writer) (int64, error) {
	out := &imageWriter{w: bufio.NewWriterSize(w, 64<<10), off: headerSize}
	super := super{
		inodes:       uint64(len(p.nodes)),
		blocks:       uint32(p.blocks),
		deviceBlocks: uint32(blocksOf(p.draft.DeviceSize)),
		diffID:       p.draft.DiffID,
	}.encode()
	out.write(super[:])
	var buf []byte
	for _, n := range p.nodes {
		var err error
		if buf, err = p.appendInode(buf[:0], n); err != nil {
			return 0, err
		}
		out.seek(n.at.off)
		out.write(buf)
	}
	for _, n := range p.nodes {
		if n.at.shape.blocks > 0 {
			out.seek(n.at.block * BlockSize)
			p.writeBlocks(out, n)
		}
	}
	out.seek(p.blocks * BlockSize)
	return out.off - headerSize, out.w.Flush()
}

// appendInode appends the inode of n and all that lies behind it.
func (p *plan) appendInode(b []byte, n *Node) ([]byte, error) {
	s := &n.at.shape
	b = n.appendHeader(b)
	b = appendXattrs(b, n.Xattrs)
	switch {
	case s.layout == layoutChunked:
		for len(b)%chunkSize != 0 {
			b = append(b, 0)
		}
		return p.appendChunks(b, n)
	case s.inline > 0 && n.Mode&modeType == modeSymlink:
		b = append(b, n.Target...)
	case s.inline > 0:
		d := &p.dirs[n.at.dir]
		at := int64(0)
		eachDirBlock(d.links, func(block []link, used int64) {
			if at += BlockSize; at > d.size {
				b = appendBlock(b, block)
			}
		})
	}
	return b, nil
}

// appendHeader appends the 64 bytes of n's extended inode.
func (n *Node) appendHeader(out []byte) []byte {
	var b [inodeSize]byte
	s := &n.at.shape
	le := binary.LittleEndian
	le.PutUint16(b[0:], s.layout<<1|formatExtended)
	le.PutUint16(b[2:], xattrCount(int64(s.xattrs)))
	le.PutUint16(b[4:], uint16(n.Mode))
	le.PutUint64(b[8:], uint64(s.size))
	switch {
	case s.layout == layoutChunked:
		le.PutUint16(b[16:], chunkWithIndexes|s.bits)
	case s.blocks > 0:
		le.PutUint32(b[16:], uint32(n.at.block))
	case n.Mode&modeType == modeChar || n.Mode&modeType == modeBlock:
		// The low 32 bits of unix.Mkdev are what the kernel calls new_encode_dev:
		// 12 bits of major, 20 of minor, as many as a device number has in Linux.
		le.PutUint32(b[16:], uint32(n.Rdev))
	}
	// i_ino (offset 20) is for 32-bit kernels only and stays 0: st_ino is the nid.
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	if !n.Mtime.IsZero() {
		le.PutUint64(b[32:], uint64(n.Mtime.Unix()))
		le.PutUint32(b[40:], uint32(n.Mtime.Nanosecond()))
	}
	le.PutUint32(b[44:], n.at.nlink)
	return append(out, b[:]...)
}

// appendBlock appends the entries and names of one directory block.
func appendBlock(b []byte, links []link) []byte {
	le := binary.LittleEndian
	at := len(links) * direntSize
	for _, l := range links {
		b = le.AppendUint64(b, l.node.at.nid())
		b = le.AppendUint16(b, uint16(at))
		b = append(b, uint8(typeOf(l.node.Mode)), 0)
		at += len(l.name)
	}
	for _, l := range links {
		b = append(b, l.name...)
	}
	return b
}

// writeBlocks writes the blocks that n has of its own.
func (p *plan) writeBlocks(w *imageWriter, n *Node) {
	start := w.off
	end := start + n.at.shape.blocks*BlockSize
	switch n.Mode & modeType {
	case modeDir:
		d := &p.dirs[n.at.dir]
		eachDirBlock(d.links, func(block []link, _ int64) {
			if w.seek(start + alignUp(w.off-start, BlockSize)); w.off < end {
				w.block = appendBlock(w.block[:0], block)
				w.write(w.block)
			}
		})
	case modeSymlink:
		w.write([]byte(n.Target))
	case modeRegular:
		for i := range n.Extents {
			if data := n.Extents[i].Data; len(data) > 0 {
				w.seek(start + alignUp(w.off-start, BlockSize))
				w.write(data)
			}
		}
	}
	w.seek(end)
}

// writeSpans writes the span table and returns its size.
func (p *plan) writeSpans(w io.Writer) (int64, error) {
	out := bufio.NewWriterSize(w, min(64<<10, len(p.draft.Spans)*spanSize))
	var buf []byte
	for i := range p.draft.Spans {
		buf = p.draft.Spans[i].append(buf[:0])
		_, _ = out.Write(buf) // bufio keeps the first error for Flush
	}
	return int64(len(p.draft.Spans)) * spanSize, out.Flush()
}

// writeImplicit writes the nids of the implicit directories, 8 bytes each, in
// their order, and returns the size of the list.
func (p *plan) writeImplicit(w io.Writer) (int64, error) {
	var b []byte
	for i := range p.dirs {
		if n := p.dirs[i].node; n.Implicit {
			b = binary.LittleEndian.AppendUint64(b, n.at.nid())
		}
	}
	_, err := w.Write(b)
	return int64(len(b)), err
}
