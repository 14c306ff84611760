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

	// Entries lists a directory but "." and "..", in the order of its names' bytes, in the place of
	// Node.Children where it is not nil. It is called once a directory, when the entry that names
	// the directory was listed: for the root, then for a directory's first subdirectory and all
	// below it, then for the next one. Write may put two more entries behind those in the slice.
	Entries func(dir *Node) ([]Entry, error)
}

// Write writes the index file of d to w and returns its size in bytes. Equal
// drafts give equal bytes. The file is produced from front to back, twice, as
// the header holds digests of what follows it; memory beyond d's own is about 50
// bytes a node.
//
// Errors that are not w's say what of the layer EROFS cannot represent, by path.
func Write(w io.Writer, d *Draft) (int64, error) {
	p, err := newPlan(d, 0)
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
	h := FileHeader{Header: p.draft.Header, size: HeaderSize}
	for i, emit := range p.sections() {
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
	total := int64(HeaderSize)
	for _, emit := range p.sections() {
		n, err := emit(w)
		if total += n; err != nil {
			return total, err
		}
	}
	return total, nil
}

// Restore writes the index file that h is the header of, of the draft that it was written of.
// d.Header is set to that. The error for a draft of another file, or of one that Check would not
// accept, wraps ErrCorrupt; w then holds a part of a file that is worth nothing.
func (h *FileHeader) Restore(w io.Writer, d *Draft) error {
	d.Header = h.Header
	const least = 96 // bytes of the tree for one file, about
	p, err := newPlan(d, min(h.section[sectionTree].Size/least, 1<<16))
	if err != nil {
		return corrupt("%v", err)
	}
	for i := range p.dirs {
		if n := p.dirs[i].path; n > maxPath {
			return corrupt("path of %d bytes", n)
		}
	}
	return p.writeAs(w, h)
}

// writeAs writes the index file, once, if it is the one that h describes.
func (p *plan) writeAs(w io.Writer, h *FileHeader) error {
	// A small draft can stand for a large tree: it is as large as was said, or not written.
	if n := h.section[sectionTree].Size; HeaderSize+n != p.blocks*BlockSize {
		return corrupt("tree of %d blocks, the header says %d bytes", p.blocks, n)
	}
	header, err := h.encode()
	if err != nil {
		return err
	}
	if _, err := w.Write(header[:]); err != nil {
		return err
	}
	made := FileHeader{size: HeaderSize}
	for i, emit := range p.sections() {
		err := made.measure(i, func(sum io.Writer) (int64, error) { return emit(io.MultiWriter(w, sum)) })
		if err != nil {
			return err
		}
		if made.section[i] != h.section[i] {
			return corrupt("section %d is not what the header says", i)
		}
	}
	return nil
}

// sections are the functions that write the file's sections, in their order.
func (p *plan) sections() []func(io.Writer) (int64, error) {
	return []func(io.Writer) (int64, error){p.writeTree, p.writeSpans, p.writeImplicit}
}

// measure sets section i, which follows what was measured before, to what emit writes.
func (h *FileHeader) measure(i int, emit func(io.Writer) (int64, error)) error {
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
	out := &imageWriter{w: bufio.NewWriterSize(w, 64<<10), off: HeaderSize}
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
	return out.off - HeaderSize, out.w.Flush()
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
		eachDirBlock(d.links, func(block []Entry, used int64) {
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
func appendBlock(b []byte, links []Entry) []byte {
	le := binary.LittleEndian
	at := len(links) * direntSize
	for _, l := range links {
		b = le.AppendUint64(b, l.Node.at.nid())
		b = le.AppendUint16(b, uint16(at))
		b = append(b, uint8(typeOf(l.Node.Mode)), 0)
		at += len(l.Name)
	}
	for _, l := range links {
		b = append(b, l.Name...)
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
		eachDirBlock(d.links, func(block []Entry, _ int64) {
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
