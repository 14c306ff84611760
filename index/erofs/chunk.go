package erofs

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// piece is a stretch of a file that is mapped as one: contiguous in the
// device, in the tree's own blocks, or a hole.
type piece struct {
	off, end int64  // in the file; end is rounded up to whole blocks
	device   uint16 // device ID; 0 is the image
	block    int64  // first block; nullBlock for a hole
	data     []byte // kept in the tree
}

// pieces calls fn for the pieces of n in file order, without gaps up to its
// last block, neighbours merged; blocks kept in the tree begin at block.
func (p *Plan) pieces(n *Node, block int64, fn func(piece)) error {
	// Nearly all files are one piece of the device: for them there is nothing to merge.
	if len(n.Extents) == 1 && n.Extents[0].Data == nil && n.Extents[0].Size == n.Size && n.Size > 0 {
		e := &n.Extents[0]
		if err := p.checkExtent(n, e, 0); err != nil {
			return fmt.Errorf("extent 0: %w", err)
		}
		fn(piece{end: alignUp(n.Size, BlockSize), device: deviceInUse, block: e.Device / BlockSize})
		return nil
	}
	var last piece
	emit := func(q piece) {
		merge := q.device == last.device && q.data == nil && last.data == nil && last.end > last.off &&
			(q.block == nullBlock && last.block == nullBlock ||
				q.block != nullBlock && last.block != nullBlock &&
					q.block == last.block+(last.end-last.off)/BlockSize)
		if merge {
			last.end = q.end
			return
		}
		if last.end > last.off {
			fn(last)
		}
		last = q
	}
	end := int64(0)
	for i := range n.Extents {
		e := &n.Extents[i]
		if e.Size == 0 {
			continue
		}
		if err := p.checkExtent(n, e, end); err != nil {
			return fmt.Errorf("extent %d: %w", i, err)
		}
		if e.File > end {
			emit(piece{off: end, end: e.File, block: nullBlock})
		}
		end = alignUp(e.File+e.Size, BlockSize)
		if e.Data != nil {
			emit(piece{off: e.File, end: end, block: block, data: e.Data})
			block += blocksOf(e.Size)
		} else {
			emit(piece{off: e.File, end: end, device: deviceInUse, block: e.Device / BlockSize})
		}
	}
	if size := alignUp(n.Size, BlockSize); size > end {
		emit(piece{off: end, end: size, block: nullBlock})
	}
	if last.end > last.off {
		fn(last)
	}
	return nil
}

// checkExtent says why e cannot follow file offset end.
func (p *Plan) checkExtent(n *Node, e *Extent, end int64) error {
	switch {
	case e.Size < 0 || e.File < end || e.File > n.Size-e.Size:
		return fmt.Errorf("file range %d+%d in a file of %d bytes, after %d", e.File, e.Size, n.Size, end)
	case e.File%BlockSize != 0 || e.Size%BlockSize != 0 && e.File+e.Size != n.Size:
		return fmt.Errorf("file range %d+%d: has to be of whole blocks of %d bytes",
			e.File, e.Size, BlockSize)
	case e.Data != nil:
		if int64(len(e.Data)) != e.Size {
			return fmt.Errorf("%d bytes of data for %d", len(e.Data), e.Size)
		}
	case e.Device%BlockSize != 0:
		return fmt.Errorf("device offset %d: not a multiple of %d; keep such pieces in the tree",
			e.Device, BlockSize)
	case e.Device < 0 || e.Device > p.device.Size-e.Size:
		return fmt.Errorf("device range %d+%d: the device has %d bytes", e.Device, e.Size, p.device.Size)
	}
	return nil
}

// shapeFile decides how a regular file is stored: in chunks of one size, the
// largest up to 1 GiB with which every piece begins and ends between two
// chunks. A contiguous file of up to 1 GiB thus has one.
func (p *Plan) shapeFile(n *Node, s *shape) error {
	if n.Size < 0 || n.Size > maxFile {
		return fmt.Errorf("file of %d bytes: the limit is %d", n.Size, int64(maxFile))
	}
	var bounds int64 = BlockSize << wholeBits // all offsets at which pieces begin, or-ed
	err := p.pieces(n, 0, func(q piece) {
		bounds |= q.off
		if q.data != nil {
			s.blocks += (q.end - q.off) / BlockSize
		}
	})
	if err != nil || n.Size == 0 {
		return err
	}
	s.layout = layoutChunked
	s.bits = uint16(bits.TrailingZeros64(uint64(bounds))) - blockBits
	size := int64(BlockSize) << s.bits
	chunks := (n.Size-1)/size + 1
	if chunks > maxChunks {
		return fmt.Errorf("sparse file of %d bytes with pieces aligned to %d bytes: "+
			"needs a table of %d chunks, the limit is %d; align its data "+
			"(cp --sparse=always aligns to the file system's blocks), or store the file whole",
			n.Size, size, chunks, maxChunks)
	}
	s.chunks = int32(chunks)
	return nil
}

// appendChunks appends the chunk indexes of a file.
func (p *Plan) appendChunks(b []byte, n *Node) ([]byte, error) {
	size := int64(BlockSize) << n.at.shape.bits
	err := p.pieces(n, n.at.block, func(q piece) {
		for off := q.off; off < q.end; off += size {
			block := q.block
			if block != nullBlock {
				block += (off - q.off) / BlockSize
			}
			b = binary.LittleEndian.AppendUint16(b, 0)
			b = binary.LittleEndian.AppendUint16(b, q.device)
			b = binary.LittleEndian.AppendUint32(b, uint32(block))
		}
	})
	return b, err
}
