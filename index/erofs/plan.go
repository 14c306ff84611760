package erofs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Plan is the layout of an image: where every inode and every block lies. It is made in one pass
// over the nodes; the image can then be written from front to back any number of times.
//
// Inodes lie in the order in which directories are walked: all children of a
// directory together, by name, then those of its first subdirectory, and so on. A listing
// reads neighbours, and as tars are mostly made in such an order, device
// offsets grow with the nids. Blocks (of directories and targets that do not
// fit behind their inode, of file pieces kept in the tree) follow all inodes.
type Plan struct {
	root   *Node
	list   func(dir *Node) ([]Entry, error)
	device Device
	nodes  []*Node   // in the order of their inodes
	dirs   []dirPlan // in the order of their inodes
	blocks int64     // first block behind the inodes, then of the whole image
}

// place is where a plan puts a node.
type place struct {
	plan  *Plan // whose place it is: a tree may be written more than once
	off   int64 // of the inode in the file
	block int64 // first block of its own, relative to the first block behind the inodes
	dir   int32 // its position in plan.dirs
	nlink uint32
	shape shape
}

func (p *place) nid() uint64 { return uint64(p.off-metaOffset) / nidSize }

// dirPlan is what a directory needs beyond its node.
type dirPlan struct {
	node   *Node
	parent *Node
	links  []Entry // in the order of their names' bytes, with "." and ".."
	size   int64   // i_size: whole blocks and the used part of the last
	path   int     // bytes of its path
}

// Entry is an entry of a directory.
type Entry struct {
	Name string
	Node *Node
}

// NewPlan lays out the image of the tree of root, which has about so many files. Its Extents lie in
// the device. Memory beyond the tree's own is about 50 bytes a file.
//
// list returns the entries of a directory but "." and "..", in the order of their names' bytes;
// nil: those of Node.Children. It is called once a directory, when the entry that names the
// directory was listed: for the root, then for a directory's first subdirectory and all below it,
// then for the next one. Two more entries may be put behind those in its slice.
//
// The error says, by path, what EROFS cannot represent, or is list's. No node may be part of
// another Plan that is used meanwhile.
func NewPlan(root *Node, list func(*Node) ([]Entry, error), d Device, files int64) (*Plan, error) {
	if root == nil || root.Mode&modeType != modeDir {
		return nil, errors.New("the root is not a directory")
	}
	p := &Plan{root: root, list: list, device: d, nodes: make([]*Node, 0, files)}
	if err := p.walk(); err != nil {
		return nil, err
	}
	if err := p.layout(); err != nil {
		return nil, err
	}
	return p, nil
}

// Size returns how many bytes of the file the image takes, those before SuperOffset among them.
func (p *Plan) Size() int64 { return p.blocks * BlockSize }

// Implicit returns the nids of the directories with Node.Implicit, in rising order.
func (p *Plan) Implicit() []uint64 {
	var nids []uint64
	for i := range p.dirs {
		if n := p.dirs[i].node; n.Implicit {
			nids = append(nids, n.at.nid())
		}
	}
	return nids
}

// CheckPaths returns an error that wraps ErrCorrupt where a directory's path is too long for
// Tree.Check.
func (p *Plan) CheckPaths() error {
	for i := range p.dirs {
		if n := p.dirs[i].path; n > maxPath {
			return corrupt("path of %d bytes", n)
		}
	}
	return nil
}

// walk lists the nodes and counts their links.
func (p *Plan) walk() error {
	p.add(p.root, p.root)
	entries := 0
	for stack := []int{0}; len(stack) > 0; {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		dir := p.dirs[at].node
		links, err := p.entries(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", p.path(at), err)
		}
		if entries += len(links); entries > maxEntries {
			return fmt.Errorf("more than %d directory entries", maxEntries)
		}
		firstSub := len(p.dirs)
		for _, l := range links {
			switch child := l.Node; {
			case child == nil || typeOf(child.Mode) == 0 || child.Mode > 0xffff:
				return fmt.Errorf("%s: no type", join(p.path(at), l.Name))
			case child.at.plan != p:
				p.add(child, dir)
				if sub := len(p.dirs) - 1; p.dirs[sub].node == child {
					p.dirs[sub].path = p.dirs[at].path + 1 + len(l.Name)
				}
			case child.Mode&modeType == modeDir:
				return fmt.Errorf("%s: second link to a directory", join(p.path(at), l.Name))
			default:
				child.at.nlink++
			}
		}
		p.dirs[at].links = withDots(links, dir, p.dirs[at].parent)
		for sub := len(p.dirs) - 1; sub >= firstSub; sub-- {
			stack = append(stack, sub)
		}
	}
	return nil
}

// add appends a node that was met for the first time, in directory parent.
func (p *Plan) add(n, parent *Node) {
	n.at = place{plan: p, nlink: 1}
	p.nodes = append(p.nodes, n)
	if n.Mode&modeType == modeDir {
		n.at.nlink = 2
		if n != parent {
			parent.at.nlink++
		}
		n.at.dir = int32(len(p.dirs))
		p.dirs = append(p.dirs, dirPlan{node: n, parent: parent})
	}
}

// entries returns the entries of a directory, in the order of their names' bytes.
func (p *Plan) entries(dir *Node) ([]Entry, error) {
	if p.list != nil {
		return p.listed(dir)
	}
	links := make([]Entry, 0, len(dir.Children)+2) // withDots adds two
	for name, n := range dir.Children {
		if err := checkName(name); err != nil {
			return nil, err
		}
		links = append(links, Entry{name, n})
	}
	slices.SortFunc(links, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return links, nil
}

// listed returns what p.list returns, checked.
func (p *Plan) listed(dir *Node) ([]Entry, error) {
	links, err := p.list(dir)
	if err != nil {
		return nil, err
	}
	for i := range links {
		if err := checkName(links[i].Name); err != nil {
			return nil, err
		}
		if i > 0 && links[i-1].Name >= links[i].Name {
			return nil, fmt.Errorf("%.64q is not behind %.64q", links[i].Name, links[i-1].Name)
		}
	}
	return links, nil
}

// withDots adds "." and ".." to a directory's entries.
func withDots(links []Entry, dir, parent *Node) []Entry {
	for _, dots := range []Entry{{".", dir}, {"..", parent}} {
		at, _ := slices.BinarySearchFunc(links, dots.Name,
			func(l Entry, name string) int { return strings.Compare(l.Name, name) })
		links = slices.Insert(links, at, dots)
	}
	return links
}

// checkName says why name cannot be a directory entry.
func checkName[T string | []byte](name T) error {
	if len(name) > maxNameLen {
		return fmt.Errorf("name of %d bytes: the limit is %d", len(name), maxNameLen)
	}
	slash, nul := false, false
	for i := range len(name) {
		slash, nul = slash || name[i] == '/', nul || name[i] == 0
	}
	if len(name) == 0 || string(name) == "." || string(name) == ".." || slash || nul {
		return fmt.Errorf("name %q is not allowed", name)
	}
	return nil
}

// layout gives every inode its offset and every block its number.
func (p *Plan) layout() error {
	pos, blocks := int64(rootOffset), int64(0)
	for _, n := range p.nodes {
		if n.Mode&modeType == modeDir {
			d := &p.dirs[n.at.dir]
			d.size = direntsSize(d.links)
		}
		s := &n.at.shape
		if err := p.shape(n, s); err != nil {
			return fmt.Errorf("%s: %w", p.nodePath(n), err)
		}
		pos = alignUp(pos, nidSize)
		if s.inline > 0 && pos/BlockSize != (pos+s.body()-1)/BlockSize {
			pos = alignUp(pos, BlockSize)
		}
		n.at.off, n.at.block = pos, blocks
		pos += s.body()
		blocks += s.blocks
	}
	if nids := (pos - metaOffset) / nidSize; nids > 1<<32-1 {
		return fmt.Errorf("inodes take %d bytes: the limit is %d", pos-metaOffset, int64(nidSize)<<32)
	}
	p.blocks = blocksOf(pos)
	if p.blocks+blocks > maxBlocks {
		return fmt.Errorf("tree of %d blocks: EROFS counts at most %d", p.blocks+blocks, int64(maxBlocks))
	}
	for _, n := range p.nodes {
		n.at.block += p.blocks
	}
	p.blocks += blocks
	return nil
}

// shape is how one inode is stored.
type shape struct {
	layout uint16
	bits   uint16
	xattrs int32 // bytes of attributes behind the inode
	inline int32 // bytes of data behind the attributes
	chunks int32 // chunk indexes behind the attributes, from a multiple of 8 on
	size   int64 // i_size
	blocks int64 // blocks of its own
}

// body returns the bytes from the inode's first to the last that belongs to it.
func (s *shape) body() int64 {
	if s.layout == layoutChunked {
		return alignUp(InodeSize+int64(s.xattrs), chunkSize) + int64(s.chunks)*chunkSize
	}
	return InodeSize + int64(s.xattrs) + int64(s.inline)
}

// shape sets s, which is zero, to how n is stored; for a directory, its size must be known.
func (p *Plan) shape(n *Node, s *shape) error {
	area, err := xattrAreaSize(n.Xattrs)
	if err != nil {
		return err
	}
	s.xattrs = int32(area)
	if n.Mode&modeType != modeDir && n.Children != nil {
		return errors.New("has children, but is not a directory")
	}
	switch n.Mode & modeType {
	case modeDir:
		s.size = p.dirs[n.at.dir].size
		p.shapeFlat(n, s, s.size%BlockSize)
	case modeSymlink:
		s.size = int64(len(n.Target))
		if s.size == 0 || s.size > maxTarget || strings.IndexByte(n.Target, 0) >= 0 {
			return fmt.Errorf("target of %d bytes: a symbolic link has 1 to %d, none of them NUL",
				s.size, maxTarget)
		}
		p.shapeFlat(n, s, s.size)
	case modeRegular:
		s.size = n.Size
		return p.shapeFile(n, s)
	}
	return nil
}

// shapeFlat decides whether the last tail bytes of directories and targets lie behind
// their inode. Inode, attributes and tail then share a block: EROFS wants that
// of the tail, and older kernels of a symbolic link as a whole.
func (p *Plan) shapeFlat(n *Node, s *shape, tail int64) {
	room := int64(maxInline)
	if n == p.root {
		room = rootInline
	}
	s.blocks = blocksOf(s.size)
	if tail > 0 && InodeSize+int64(s.xattrs)+tail <= room {
		s.layout, s.inline = layoutInline, int32(tail)
		s.blocks = (s.size - tail) / BlockSize
	}
}

// direntsSize returns the i_size of a directory of the given entries.
func direntsSize(links []Entry) int64 {
	size := int64(0)
	eachDirBlock(links, func(block []Entry, used int64) {
		size = alignUp(size, BlockSize) + used
	})
	return size
}

// eachDirBlock divides the entries of a directory into blocks and calls fn with
// the entries and the bytes of each: 12 for every entry, then
// the names.
func eachDirBlock(links []Entry, fn func(block []Entry, used int64)) {
	first, used := 0, int64(0)
	for i := range links {
		n := int64(direntSize + len(links[i].Name))
		if used+n > BlockSize {
			fn(links[first:i], used)
			first, used = i, 0
		}
		used += n
	}
	fn(links[first:], used)
}

// path returns the path of directory p.dirs[at], for errors.
func (p *Plan) path(at int) string {
	var names []string
	for d := &p.dirs[at]; d.node != p.root; d = &p.dirs[d.parent.at.dir] {
		names = append(names, p.dirs[d.parent.at.dir].nameOf(d.node))
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// nameOf returns the name of a directory's child.
func (d *dirPlan) nameOf(child *Node) string {
	for _, l := range d.links {
		if l.Node == child && l.Name != "." && l.Name != ".." {
			return l.Name
		}
	}
	return ""
}

// nodePath returns a path of n, for errors: it looks at every directory.
func (p *Plan) nodePath(n *Node) string {
	for at := range p.dirs {
		if name := p.dirs[at].nameOf(n); name != "" {
			return join(p.path(at), name)
		}
	}
	return "/"
}

// join puts a name behind a directory's path.
func join(dir, name string) string {
	return strings.TrimSuffix(dir, "/") + "/" + name
}
