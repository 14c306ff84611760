package erofs

import (
	"bufio"
	"encoding/binary"
	"io"
)

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

// Write writes the image from its superblock on, front to back, and returns how many bytes these
// are: Size without SuperOffset. It may be called any number of times.
func (p *Plan) Write(w io.Writer) (int64, error) {
	out := &imageWriter{w: bufio.NewWriterSize(w, 64<<10), off: SuperOffset}
	super := super{
		inodes: uint64(len(p.nodes)), blocks: p.blocks, device: p.device,
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
	return out.off - SuperOffset, out.w.Flush()
}

// appendInode appends the inode of n and all that lies behind it.
func (p *Plan) appendInode(b []byte, n *Node) ([]byte, error) {
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
	var b [InodeSize]byte
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
func (p *Plan) writeBlocks(w *imageWriter, n *Node) {
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
