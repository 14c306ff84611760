package bundle

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// errNotPacked is returned for an index that is too large to be packed.
var errNotPacked = errors.New("too large to be packed")

// pack returns the columns of an index file with the given header. What they bring back is the same
// file if Write made it. The error is one of l's, or for more files or bytes than are packed.
func pack(header []byte, l *index.Layer) (*columns, error) {
	d, err := l.Draft(maxPackedFiles)
	if err != nil {
		return nil, err
	}
	p := packer{kinds: map[kind]int{}, moments: map[moment]int{}, numbers: map[*erofs.Node]int{}}
	p.tree(d.Root)
	p.spans(d.Spans)
	p.out[colHeader] = header
	if p.out.size() > maxPacked {
		return nil, errNotPacked
	}
	return &p.out, nil
}

// packer makes columns of a draft.
type packer struct {
	out     columns
	kinds   map[kind]int
	moments map[moment]int
	last    moment
	numbers map[*erofs.Node]int // of the files so far, in the order of their inodes
	end     int64               // in the device, of the file before
}

func (p *packer) uvarint(col int, v uint64) { p.out[col] = binary.AppendUvarint(p.out[col], v) }
func (p *packer) varint(col int, v int64)   { p.out[col] = binary.AppendVarint(p.out[col], v) }
func (p *packer) text(col int, s string)    { p.out[col] = append(append(p.out[col], s...), 0) }

// tree packs the files in the order of their inodes: all entries of a directory, then those of its
// first subdirectory and what is below, then of the next one.
func (p *packer) tree(root *erofs.Node) {
	p.file(root)
	for todo := []*erofs.Node{root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		below := len(todo)
		for _, name := range slices.Sorted(maps.Keys(dir.Children)) {
			n := dir.Children[name]
			p.text(colNames, name)
			if p.entry(n) && n.Mode&unix.S_IFMT == unix.S_IFDIR {
				todo = append(todo, n)
			}
		}
		p.text(colNames, "")
		slices.Reverse(todo[below:])
	}
}

// entry packs what an entry stands for, and says whether that is met for the first time.
func (p *packer) entry(n *erofs.Node) (first bool) {
	if number, ok := p.numbers[n]; ok {
		p.uvarint(colEntries, 0)
		p.uvarint(colLinks, uint64(len(p.numbers)-number))
		return false
	}
	p.file(n)
	return true
}

// file packs a file that is met for the first time.
func (p *packer) file(n *erofs.Node) {
	p.numbers[n] = len(p.numbers)
	k := kind{mode: uint16(n.Mode), uid: n.UID, gid: n.GID}
	if len(n.Xattrs) > 0 {
		k.flags |= kindXattrs
	}
	if n.Implicit {
		k.flags |= kindImplicit
	}
	if n.Mode&unix.S_IFMT == unix.S_IFREG && n.Size > 0 && !isPlain(n) {
		k.flags |= kindPieces
	}
	number, ok := p.kinds[k]
	if !ok {
		number = len(p.kinds)
		p.kinds[k] = number
		p.out[colKinds] = k.append(p.out[colKinds])
	}
	p.uvarint(colEntries, uint64(number)+1)
	p.time(n.Mtime)
	if k.flags&kindXattrs != 0 {
		p.xattrs(n)
	}
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		p.uvarint(colNumbers, uint64(n.Size))
		if k.flags&kindPieces != 0 {
			p.pieces(n)
		} else if n.Size > 0 {
			p.place(n)
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		p.uvarint(colNumbers, n.Rdev)
	case unix.S_IFLNK:
		p.text(colTargets, n.Target)
	}
}

// isPlain tells a file that lies in the device as a whole.
func isPlain(n *erofs.Node) bool {
	return len(n.Extents) == 1 && n.Extents[0].Data == nil && n.Extents[0].File == 0 &&
		n.Extents[0].Size == n.Size
}

func (p *packer) time(t time.Time) {
	m := moment{t.Unix(), uint32(t.Nanosecond())}
	number, ok := p.moments[m]
	if !ok {
		number = len(p.moments)
		p.moments[m] = number
		p.varint(colMoments, m.sec-p.last.sec)
		p.uvarint(colMoments, uint64(m.nsec))
		p.last = m
	}
	p.uvarint(colTimes, uint64(number))
}

func (p *packer) xattrs(n *erofs.Node) {
	p.uvarint(colXattrs, uint64(len(n.Xattrs)))
	for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
		p.text(colXattrs, name)
		p.uvarint(colXattrs, uint64(len(n.Xattrs[name])))
		p.out[colXattrs] = append(p.out[colXattrs], n.Xattrs[name]...)
	}
}

func (p *packer) place(n *erofs.Node) {
	e := n.Extents[0]
	p.varint(colPlaces, (e.Device-p.end)/erofs.BlockSize-1)
	p.end = alignUp(e.Device + e.Size)
}

func (p *packer) pieces(n *erofs.Node) {
	p.uvarint(colPieces, uint64(len(n.Extents)))
	end := int64(0)
	for _, e := range n.Extents {
		p.uvarint(colPieces, uint64((e.File-end)/erofs.BlockSize))
		p.uvarint(colPieces, uint64(e.Size))
		if e.Data != nil {
			p.uvarint(colPieces, 1)
			p.out[colPieces] = append(p.out[colPieces], e.Data...)
		} else {
			p.uvarint(colPieces, 0)
			p.uvarint(colPieces, uint64(e.Device/erofs.BlockSize))
		}
		end = alignUp(e.File + e.Size)
	}
}

// digestUnstated is the bit, above those of codec and bit, of a packed span that states no digest
// of its window.
const digestUnstated = 1 << 5

func (p *packer) spans(spans []index.Span) {
	blob, window := int64(0), int64(0)
	for i := range spans {
		s := &spans[i]
		p.uvarint(colSpans, uint64(s.Size))
		p.varint(colSpans, s.Blob-blob)
		p.uvarint(colSpans, uint64(s.BlobSize))
		form := uint64(s.Codec)<<3 | uint64(s.Bit)
		stated := s.WindowDigest != [sha256.Size]byte{}
		if !stated {
			form |= digestUnstated
		}
		p.uvarint(colSpans, form)
		p.uvarint(colSpans, uint64(s.Window.Size))
		blob = s.Blob + s.BlobSize
		p.out[colDigests] = append(p.out[colDigests], s.Digest[:]...)
		if s.Window.Size > 0 {
			p.varint(colSpans, s.Window.Off-window)
			window = s.Window.Off + s.Window.Size
			if stated {
				p.out[colDigests] = append(p.out[colDigests], s.WindowDigest[:]...)
			}
		}
	}
}

// size returns how many bytes the columns have.
func (c *columns) size() (n int64) {
	for _, b := range c {
		n += int64(len(b))
	}
	return n
}

// write writes the columns' sizes and the columns, each in blocks of its own: other values have
// other frequencies.
func (c *columns) write(z *zstd.Encoder) error {
	var sizes []byte
	for _, b := range c {
		sizes = binary.LittleEndian.AppendUint32(sizes, uint32(len(b)))
	}
	for _, b := range append([][]byte{sizes}, c[:]...) {
		if _, err := z.Write(b); err != nil {
			return err
		}
		if err := z.Flush(); err != nil {
			return err
		}
	}
	return nil
}
