package erofs

import (
	"encoding/binary"
	"fmt"
)

// maxData is the most that Extents reads from the tree for one piece, in bytes.
const maxData = 64 << 10

// Extents calls fn, in file order, for the pieces that make up the range of n
// bytes from off on, as far as the file goes, until fn returns an error, which
// it returns. Device is Hole for a piece that reads as zeros; Data holds the
// bytes of a piece that lies in the tree (at most 64 KiB each) and is only valid during
// the call. Neighbouring chunks that lie together in the device are one piece.
func (t *Tree) Extents(ino Inode, off, n int64, fn func(Extent) error) error {
	if off < 0 || n < 0 {
		return fmt.Errorf("extents of inode %d: range %d+%d", ino.Nid, off, n)
	}
	if ino.Type() != Regular {
		return fmt.Errorf("extents of inode %d: mode %#o is not a regular file", ino.Nid, ino.Mode)
	}
	if off >= ino.Size || n == 0 {
		return nil
	}
	r := extentReader{t: t, ino: &ino, end: off + min(n, ino.Size-off), fn: fn}
	return r.run(off)
}

// extentReader merges the chunks of one range.
type extentReader struct {
	t    *Tree
	ino  *Inode
	end  int64
	fn   func(Extent) error
	next Extent // not yet reported; Size 0: none
}

func (r *extentReader) run(off int64) error {
	bits, err := r.chunkBits()
	if err != nil {
		return fmt.Errorf("extents of inode %d: %w", r.ino.Nid, err)
	}
	table := alignUp(r.ino.body(), chunkSize)
	buf := getBlock()
	defer putBlock(buf)
	const batch = BlockSize / chunkSize
	last := (r.end - 1) >> bits
	for first := off >> bits; first <= last; first += batch {
		b := buf[:min(last-first+1, batch)*chunkSize]
		if err := r.t.read(b, table+first*chunkSize); err != nil {
			return fmt.Errorf("extents of inode %d: %w", r.ino.Nid, err)
		}
		for i := first; len(b) > 0; i, b = i+1, b[chunkSize:] {
			start := i << bits
			e, fromTree, err := r.t.chunk(b, min(1<<bits, r.ino.Size-start))
			if err != nil {
				return fmt.Errorf("extents of inode %d: chunk %d: %w", r.ino.Nid, i, err)
			}
			e.File = start
			if err := r.add(clip(e, off, r.end), fromTree); err != nil {
				return err
			}
		}
	}
	return r.flush()
}

// chunkBits returns the logarithm of the inode's chunk size in bytes.
func (r *extentReader) chunkBits() (uint, error) {
	format := r.ino.raw
	if r.ino.layout != layoutChunked || format&^chunkBitsMask != chunkWithIndexes {
		return 0, corrupt("layout %d, chunk format %#x", r.ino.layout, format)
	}
	return blockBits + uint(format&chunkBitsMask), nil
}

// chunk decodes a chunk index for a chunk of size bytes. With fromTree, Device
// is an offset in the tree.
func (t *Tree) chunk(b []byte, size int64) (e Extent, fromTree bool, err error) {
	le := binary.LittleEndian
	high, device, block := le.Uint16(b), le.Uint16(b[2:]), int64(le.Uint32(b[4:]))
	limit := t.device
	if device == 0 {
		limit = t.size
	}
	switch {
	case high != 0 || device > deviceInUse:
		return e, false, corrupt("device %d, block %#x%08x", device, high, block)
	case block == nullBlock:
		return Extent{Size: size, Device: Hole}, false, nil
	case block*BlockSize > limit-size:
		return e, false, corrupt("%d bytes from block %d of device %d, which has %d",
			size, block, device, limit)
	}
	return Extent{Size: size, Device: block * BlockSize}, device == 0, nil
}

// clip cuts e to the file range from off to end.
func clip(e Extent, off, end int64) Extent {
	if cut := off - e.File; cut > 0 {
		e.File += cut
		e.Size -= cut
		if e.Device != Hole {
			e.Device += cut
		}
	}
	e.Size = min(e.Size, end-e.File)
	return e
}

// add reports e, or puts it behind what is not yet reported.
func (r *extentReader) add(e Extent, fromTree bool) error {
	n := &r.next
	if !fromTree && n.Size > 0 &&
		(e.Device == Hole && n.Device == Hole ||
			e.Device != Hole && n.Device != Hole && e.Device == n.Device+n.Size) {
		n.Size += e.Size
		return nil
	}
	if err := r.flush(); err != nil {
		return err
	}
	if !fromTree {
		*n = e
		return nil
	}
	buf := make([]byte, min(e.Size, maxData))
	for e.Size > 0 {
		data := buf[:min(e.Size, maxData)]
		if err := r.t.read(data, e.Device); err != nil {
			return fmt.Errorf("extents of inode %d: %w", r.ino.Nid, err)
		}
		size := int64(len(data))
		if err := r.fn(Extent{File: e.File, Size: size, Data: data}); err != nil {
			return err
		}
		e.File, e.Device, e.Size = e.File+size, e.Device+size, e.Size-size
	}
	return nil
}

// flush reports what is not yet reported.
func (r *extentReader) flush() error {
	e := r.next
	r.next = Extent{}
	if e.Size == 0 {
		return nil
	}
	return r.fn(e)
}
