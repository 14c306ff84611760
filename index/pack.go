package index

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
)

// errNotPacked is returned for an index that is too large to be packed.
var errNotPacked = errors.New("too large to be packed")

// pack returns the columns of an index file, or errNotPacked.
func pack(l *Layer) (*columns, error) {
	if l.inodes > maxPackedFiles {
		return nil, errNotPacked
	}
	d, _, err := draftOf(l, maxPackedFiles)
	if err != nil {
		return nil, err
	}
	plan, err := newPlan(d)
	if err != nil {
		return nil, err
	}
	p := packer{plan: plan, kinds: map[kind]int{}, moments: map[moment]int{}, numbers: map[*Node]int{}}
	p.tree()
	p.spans()
	header, err := l.header.encode()
	if err != nil {
		return nil, err
	}
	p.out[colHeader] = header[:]
	if p.out.size() > maxPacked {
		return nil, errNotPacked
	}
	return &p.out, nil
}

// packer makes columns of a plan.
type packer struct {
	plan    *plan
	out     columns
	kinds   map[kind]int
	moments map[moment]int
	last    moment
	numbers map[*Node]int // of files with several names
	files   int           // so far
	end     int64         // in the device, of the file before
}

func (p *packer) uvarint(col int, v uint64) { p.out[col] = binary.AppendUvarint(p.out[col], v) }
func (p *packer) varint(col int, v int64)   { p.out[col] = binary.AppendVarint(p.out[col], v) }
func (p *packer) text(col int, s string)    { p.out[col] = append(append(p.out[col], s...), 0) }

// tree packs the files, in the order in which plan.walk meets them.
func (p *packer) tree() {
	p.file(p.plan.draft.Root)
	for todo := []int32{0}; len(todo) > 0; {
		d := &p.plan.dirs[todo[len(todo)-1]]
		todo = todo[:len(todo)-1]
		below := len(todo)
		for _, l := range d.links {
			if l.name == "." || l.name == ".." {
				continue
			}
			p.text(colNames, l.name)
			p.entry(l.node)
			if n := l.node; n.Mode&modeType == modeDir {
				todo = append(todo, n.at.dir)
			}
		}
		p.text(colNames, "")
		slices.Reverse(todo[below:])
	}
}

func (p *packer) entry(n *Node) {
	if number, ok := p.numbers[n]; ok {
		p.uvarint(colEntries, 0)
		p.uvarint(colLinks, uint64(p.files-number))
		return
	}
	if n.at.nlink > 1 && n.Mode&modeType != modeDir {
		p.numbers[n] = p.files
	}
	p.file(n)
}

// file packs a file that is met for the first time.
func (p *packer) file(n *Node) {
	p.files++
	k := kind{mode: uint16(n.Mode), uid: n.UID, gid: n.GID}
	if len(n.Xattrs) > 0 {
		k.flags |= kindXattrs
	}
	if n.Implicit {
		k.flags |= kindImplicit
	}
	if n.Mode&modeType == modeRegular && n.Size > 0 && !n.isPlain() {
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
	switch n.Mode & modeType {
	case modeRegular:
		p.uvarint(colNumbers, uint64(n.Size))
		if k.flags&kindPieces != 0 {
			p.pieces(n)
		} else if n.Size > 0 {
			p.place(n)
		}
	case modeChar, modeBlock:
		p.uvarint(colNumbers, n.Rdev)
	case modeSymlink:
		p.text(colTargets, n.Target)
	}
}

// isPlain tells a file that lies in the device as a whole.
func (n *Node) isPlain() bool {
	return len(n.Extents) == 1 && n.Extents[0].Data == nil && n.Extents[0].File == 0 && n.Extents[0].Size == n.Size
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

func (p *packer) xattrs(n *Node) {
	p.uvarint(colXattrs, uint64(len(n.Xattrs)))
	for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
		p.text(colXattrs, name)
		p.uvarint(colXattrs, uint64(len(n.Xattrs[name])))
		p.out[colXattrs] = append(p.out[colXattrs], n.Xattrs[name]...)
	}
}

func (p *packer) place(n *Node) {
	e := n.Extents[0]
	p.varint(colPlaces, (e.Device-p.end)/BlockSize-1)
	p.end = alignUp(e.Device+e.Size, BlockSize)
}

func (p *packer) pieces(n *Node) {
	p.uvarint(colPieces, uint64(len(n.Extents)))
	end := int64(0)
	for _, e := range n.Extents {
		p.uvarint(colPieces, uint64((e.File-end)/BlockSize))
		p.uvarint(colPieces, uint64(e.Size))
		if e.Data != nil {
			p.uvarint(colPieces, 1)
			p.out[colPieces] = append(p.out[colPieces], e.Data...)
		} else {
			p.uvarint(colPieces, 0)
			p.uvarint(colPieces, uint64(e.Device/BlockSize))
		}
		end = alignUp(e.File+e.Size, BlockSize)
	}
}

// digestUnstated is the bit, above those of codec and bit, of a packed span that states no digest
// of its window.
const digestUnstated = 1 << 5

func (p *packer) spans() {
	blob, window := int64(0), int64(0)
	for i := range p.plan.draft.Spans {
		s := &p.plan.draft.Spans[i]
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

// draftOf returns what an index file was made of, and its nodes by nid;
// errNotPacked where there are more than most.
func draftOf(l *Layer, most int) (*Draft, map[uint64]*Node, error) {
	spans, err := l.Spans()
	if err != nil {
		return nil, nil, err
	}
	implicit, err := l.Implicit()
	if err != nil {
		return nil, nil, err
	}
	r := drafter{tree: l.walked(), nodes: map[uint64]*Node{}, most: most}
	root, err := r.node(rootNid)
	if err != nil {
		return nil, nil, err
	}
	for len(r.todo) > 0 {
		nid := r.todo[len(r.todo)-1]
		r.todo = r.todo[:len(r.todo)-1]
		if err := r.directory(nid); err != nil {
			return nil, nil, err
		}
	}
	for _, nid := range implicit {
		if n := r.nodes[nid]; n != nil {
			n.Implicit = true
		}
	}
	return &Draft{Header: l.header.Header, Root: root, Spans: spans}, r.nodes, nil
}

// drafter makes nodes of inodes.
type drafter struct {
	tree  *Tree
	nodes map[uint64]*Node
	todo  []uint64 // directories
	most  int      // nodes
}

func (r *drafter) directory(nid uint64) error {
	dir, failed := r.nodes[nid], error(nil)
	err := r.tree.ReadDir(nid, 0, func(e Dirent) bool {
		if e.Name != "." && e.Name != ".." {
			dir.Children[e.Name], failed = r.node(e.Nid)
		}
		return failed == nil
	})
	return errors.Join(failed, err)
}

func (r *drafter) node(nid uint64) (*Node, error) {
	if n := r.nodes[nid]; n != nil {
		return n, nil
	}
	ino, err := r.tree.inode(nid)
	if err != nil {
		return nil, err
	}
	n := &Node{Mode: ino.Mode, UID: ino.UID, GID: ino.GID, Mtime: ino.Mtime, Rdev: ino.Rdev}
	r.nodes[nid] = n
	if len(r.nodes) > r.most {
		return nil, errNotPacked
	}
	err = r.tree.eachXattr(nid, func(name string, value []byte) bool {
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = string(value)
		return true
	})
	if err != nil {
		return nil, err
	}
	switch ino.Type() {
	case Directory:
		n.Children = map[string]*Node{}
		r.todo = append(r.todo, nid)
	case Symlink:
		n.Target, err = r.tree.readlink(nid)
	case Regular:
		n.Size = ino.Size
		err = r.tree.Extents(ino, 0, ino.Size, func(e Extent) error {
			n.addExtent(e)
			return nil
		})
	}
	return n, err
}

// addExtent adds what Tree.Extents reports to a file's extents. What lies in the tree comes in
// parts.
func (n *Node) addExtent(e Extent) {
	if e.Data == nil {
		if e.Device != Hole {
			n.Extents = append(n.Extents, e)
		}
		return
	}
	if i := len(n.Extents) - 1; i >= 0 && n.Extents[i].Data != nil && n.Extents[i].File+n.Extents[i].Size == e.File {
		n.Extents[i].Data = append(n.Extents[i].Data, e.Data...)
		n.Extents[i].Size += e.Size
		return
	}
	e.Data = bytes.Clone(e.Data)
	n.Extents = append(n.Extents, e)
}
