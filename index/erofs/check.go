package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Check says whether an image that came from elsewhere may be used: by this package, and by a
// kernel that is to mount it. It walks the whole tree, which has to be one that a Plan could have:
// known formats only, every offset inside the image or the device, directories in order, with "."
// and ".." that are right, a single parent and no cycles, link counts that hold, nothing set that
// is reserved. implicit, in any order, have to be directories of it.
//
// It takes time in proportion to the size of the image (100,000 files: about 0.1 s) and memory for
// a bit in 256 of it, the directories that wait for their turn, and 4 bytes a hard link, however
// the image was forged: bytes that two inodes claim are refused. The error wraps ErrCorrupt, or is
// the reader's or ctx's.
func (t *Tree) Check(ctx context.Context, implicit []uint64) error {
	nids := (t.size-metaOffset)/nidSize + 1
	c := &checker{tree: t.Buffered(), left: t.size - metaOffset,
		seen: make(bitmap, nids/8+1), dirs: make(bitmap, nids/8+1)}
	if err := c.walk(ctx); err != nil {
		return err
	}
	for _, nid := range implicit {
		if !c.dirs.has(nid) {
			return corrupt("implicit directory %d is no directory of the tree", nid)
		}
	}
	if c.inodes != t.inodes {
		return corrupt("superblock counts %d inodes, the tree has %d", t.inodes, c.inodes)
	}
	return nil
}

// checker walks a tree, every directory once.
type checker struct {
	tree    *Tree
	seen    bitmap // inodes that were checked
	dirs    bitmap // those that are directories
	left    int64  // bytes of the image that no inode has claimed
	inodes  int64
	entries int
	links   []uint32 // nids of non-directories with several links, one for each entry
	todo    []dirRef
}

// dirRef is a directory that is still to be walked.
type dirRef struct {
	inode  Inode
	parent uint64
	path   int // bytes of its path
}

func (c *checker) walk(ctx context.Context) error {
	root, err := c.inode(rootNid)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if root.Type() != Directory {
		return corrupt("root has mode %#o", root.Mode)
	}
	c.todo = append(c.todo, dirRef{inode: root, parent: rootNid})
	for len(c.todo) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		d := c.todo[len(c.todo)-1]
		c.todo = c.todo[:len(c.todo)-1]
		if err := c.directory(&d); err != nil {
			return fmt.Errorf("directory %d: %w", d.inode.Nid, err)
		}
	}
	return c.checkLinks()
}

// claim takes n bytes of the image for one use. In a sound image all claims fit.
func (c *checker) claim(n int64) error {
	if c.left -= n; c.left < 0 {
		return corrupt("inodes overlap")
	}
	return nil
}

// inode reads an inode and, when it is seen for the first time, checks it and all
// that belongs to it, except for a directory's entries.
func (c *checker) inode(nid uint64) (Inode, error) {
	ino, err := c.tree.inode(nid)
	if err != nil || c.seen.has(nid) {
		return ino, err
	}
	c.seen.set(nid)
	c.inodes++
	if err := c.reserved(&ino); err != nil {
		return ino, err
	}
	if err := c.claim(InodeSize + ino.xattrs); err != nil {
		return ino, err
	}
	if ino.xattrs > 0 {
		if err := c.tree.eachXattr(nid, func(string, []byte) bool { return true }); err != nil {
			return ino, err
		}
	}
	switch ino.Type() {
	case Directory:
		c.dirs.set(nid)
		err = c.flat(&ino, ino.Size%BlockSize)
	case Symlink:
		if err = c.flat(&ino, ino.Size); err == nil {
			err = c.target(&ino)
		}
	case Regular:
		err = c.file(&ino)
	case CharDevice, BlockDevice:
		err = c.special(&ino, ino.raw)
	case FIFO, Socket:
		err = c.special(&ino, 0)
	}
	return ino, err
}

// reserved checks the fields of an inode that Tree does not read.
func (c *checker) reserved(ino *Inode) error {
	buf := getBlock()
	defer putBlock(buf)
	b := buf[:InodeSize]
	if err := c.tree.read(b, ino.offset()); err != nil {
		return err
	}
	if !allZero(b[6:8]) || !allZero(b[20:24]) || !allZero(b[48:]) {
		return corrupt("reserved bytes are in use")
	}
	if ino.Nlink == 0 {
		return corrupt("no links")
	}
	return nil
}

// special checks a device, FIFO or socket.
func (c *checker) special(ino *Inode, raw uint32) error {
	if ino.layout != layoutPlain || ino.Size != 0 || ino.raw != raw {
		return corrupt("mode %#o with layout %d, size %d, %#x", ino.Mode, ino.layout, ino.Size, ino.raw)
	}
	return nil
}

// flat checks the place of a directory's or symbolic link's data, of which the
// last tail bytes may lie behind the inode.
func (c *checker) flat(ino *Inode, tail int64) error {
	own := alignUp(ino.Size, BlockSize)
	if ino.layout == layoutInline {
		if tail == 0 || ino.offset()/BlockSize != (ino.body()+tail-1)/BlockSize {
			return corrupt("%d bytes behind the inode cross a block", tail)
		}
		if err := c.claim(tail); err != nil {
			return err
		}
		own = ino.Size - tail
	}
	start := int64(ino.raw) * BlockSize
	if own == 0 && ino.raw != 0 || own > 0 && (start < metaOffset || start > c.tree.size-own) {
		return corrupt("%d bytes from block %d on", own, ino.raw)
	}
	return c.claim(own)
}

func (c *checker) target(ino *Inode) error {
	s, err := c.tree.readlink(ino.Nid)
	if err == nil && strings.IndexByte(s, 0) >= 0 {
		err = corrupt("target with a NUL")
	}
	return err
}

// file checks a regular file's chunks.
func (c *checker) file(ino *Inode) error {
	if ino.Size == 0 {
		return c.special(ino, 0)
	}
	r := extentReader{t: c.tree, ino: ino}
	bits, err := r.chunkBits()
	if err != nil {
		return err
	}
	count := (ino.Size-1)>>bits + 1
	if count > maxChunks {
		return corrupt("%d chunks", count)
	}
	at := alignUp(ino.body(), chunkSize)
	if err := c.claim(at - ino.body() + count*chunkSize); err != nil {
		return err
	}
	buf := getBlock()
	defer putBlock(buf)
	b := buf[:chunkSize]
	for i := range count {
		if err := c.tree.read(b, at+i*chunkSize); err != nil {
			return err
		}
		e, fromTree, err := c.tree.chunk(b, min(1<<bits, ino.Size-i<<bits))
		if err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if !fromTree && e.Device == Hole && binary.LittleEndian.Uint32(b) != 0 {
			return corrupt("chunk %d: hole with a device", i)
		}
		if fromTree {
			if e.Device < metaOffset {
				return corrupt("chunk %d: block %d of the image", i, e.Device/BlockSize)
			}
			if err := c.claim(alignUp(e.Size, BlockSize)); err != nil {
				return err
			}
		}
	}
	return nil
}

// directory checks the entries of a directory and the inodes that they name.
func (c *checker) directory(d *dirRef) error {
	w := dirChecker{c: c, dir: d, subdirs: 2}
	var buf [BlockSize]byte
	for i := range blocksOf(d.inode.Size) {
		b, err := c.tree.readDirBlock(&d.inode, i, &buf)
		if err != nil {
			return err
		}
		if err := w.block(b); err != nil {
			return err
		}
	}
	if w.self != 2 {
		return corrupt("no . or no ..")
	}
	if d.inode.Nlink != w.subdirs {
		return corrupt("%d links, but %d would be right", d.inode.Nlink, w.subdirs)
	}
	return nil
}

// dirChecker checks the entries of one directory.
type dirChecker struct {
	c       *checker
	dir     *dirRef
	last    []byte // name before
	self    int    // how many of "." and ".." were met
	subdirs uint32
}

func (w *dirChecker) block(b dirBlock) error {
	at := b.count * direntSize
	for i := range b.count {
		nid, typ, name, err := b.entry(i)
		if err != nil {
			return err
		}
		e := b.b[i*direntSize:]
		if int(binary.LittleEndian.Uint16(e[8:])) != at || e[11] != 0 {
			return corrupt("entry %.64q: names are not packed", name)
		}
		at += len(name)
		if bytes.Compare(w.last, name) >= 0 {
			return corrupt("entry %.64q is not behind %.64q", name, w.last)
		}
		w.last = append(w.last[:0], name...)
		if err := w.entry(nid, typ, name); err != nil {
			return fmt.Errorf("entry %.64q: %w", name, err)
		}
	}
	if !allZero(b.b[at:]) {
		return corrupt("directory block: bytes behind the last name")
	}
	return nil
}

func (w *dirChecker) entry(nid uint64, typ Type, name []byte) error {
	c := w.c
	if string(name) == "." || string(name) == ".." {
		want := w.dir.inode.Nid
		if len(name) == 2 {
			want = w.dir.parent
		}
		if w.self++; nid != want || typ != Directory {
			return corrupt("is inode %d of type %d, not directory %d", nid, typ, want)
		}
		return nil
	}
	if c.entries++; c.entries > maxEntries {
		return corrupt("more than %d directory entries", maxEntries)
	}
	if err := checkName(name); err != nil {
		return corrupt("%v", err)
	}
	again := c.seen.has(nid)
	ino, err := c.inode(nid)
	if err != nil {
		return fmt.Errorf("inode %d: %w", nid, err)
	}
	switch {
	case ino.Type() != typ:
		return corrupt("type %d, but inode %d has mode %#o", typ, nid, ino.Mode)
	case typ == Directory && again:
		return corrupt("second link to directory %d", nid)
	case typ == Directory:
		w.subdirs++
		d := dirRef{inode: ino, parent: w.dir.inode.Nid, path: w.dir.path + 1 + len(name)}
		if d.path > maxPath {
			return corrupt("path of %d bytes", d.path)
		}
		c.todo = append(c.todo, d)
	case again && ino.Nlink == 1:
		return corrupt("inode %d has one link, and another", nid)
	case ino.Nlink > 1:
		c.links = append(c.links, uint32(nid))
	}
	return nil
}

// checkLinks compares the link counts of files that have several.
func (c *checker) checkLinks() error {
	slices.Sort(c.links)
	for len(c.links) > 0 {
		nid, n := c.links[0], 1
		for n < len(c.links) && c.links[n] == nid {
			n++
		}
		ino, err := c.tree.inode(uint64(nid))
		if err != nil {
			return err
		}
		if int64(ino.Nlink) != int64(n) {
			return corrupt("inode %d has %d links and says %d", nid, n, ino.Nlink)
		}
		c.links = c.links[n:]
	}
	return nil
}

// bitmap is a set of nids.
type bitmap []byte

func (b bitmap) set(nid uint64)      { b[nid/8] |= 1 << (nid % 8) }
func (b bitmap) has(nid uint64) bool { return nid/8 < uint64(len(b)) && b[nid/8]&(1<<(nid%8)) != 0 }

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
