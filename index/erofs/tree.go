package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Tree reads the files of an image by nid, the number that the kernel shows as st_ino. It reads
// with ReadAt and keeps nothing: not mapped, so that a file that was cut short is an error and no
// SIGBUS. Whatever the bytes say, a method reads inside the image only, allocates at most 256 KiB
// beyond what it returns, and ends.
//
// Errors wrap ErrCorrupt for bad bytes and bad nids, or are the reader's.
type Tree struct {
	r      io.ReaderAt
	size   int64 // of the image, from the start of the file on
	device int64 // bytes of the device
	inodes int64 // that the superblock claims
}

// Open reads and checks the superblock of an image that takes size bytes of a file, those before
// SuperOffset among them. r is used until the last call of any method; closing it is the caller's
// business.
func Open(r io.ReaderAt, size int64, d Device) (*Tree, error) {
	if size%BlockSize != 0 || size < rootOffset+InodeSize || size/BlockSize > maxBlocks {
		return nil, corrupt("tree of %d bytes", size)
	}
	var b [BlockSize]byte
	if err := readFull(r, b[:], SuperOffset); err != nil {
		return nil, err
	}
	// Only the count of inodes is not known. All other bits follow from what is, so nothing that was
	// not meant can be set.
	inodes := binary.LittleEndian.Uint64(b[16:])
	if inodes > uint64(size/InodeSize) ||
		b != (super{inodes: inodes, blocks: size / BlockSize, device: d}.encode()) {
		return nil, corrupt("superblock")
	}
	return &Tree{r: r, size: size, device: d.Size, inodes: int64(inodes)}, nil
}

// readFull reads len(p) bytes at off. A file that ends before is corrupt.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return corrupt("the file ends at byte %d, before %d", off+int64(n), off+int64(len(p)))
	}
	return fmt.Errorf("read index at %d: %w", off, err)
}

// Inodes returns the number of files that the superblock says there are.
func (t *Tree) Inodes() int64 { return t.inodes }

// Buffered returns the tree for a reader of all of it, front to back: it keeps the last megabyte.
// For one goroutine.
func (t *Tree) Buffered() *Tree {
	b := *t
	b.r = &pageReader{r: t.r, size: t.size}
	return &b
}

// Inode is what stat tells of a file.
type Inode struct {
	Nid       uint64
	Mode      uint32 // st_mode: type and permission bits
	UID, GID  uint32
	Nlink     uint32
	Size      int64 // bytes
	Mtime     time.Time
	Rdev      uint64 // as unix.Mkdev makes it; devices only
	HasXattrs bool

	layout uint16
	raw    uint32 // i_u: first block, chunk format, or device number
	xattrs int64  // bytes of attributes behind the inode
}

// Type returns the type that directory entries of the inode have.
func (i *Inode) Type() Type { return typeOf(i.Mode) }

// Blocks returns st_blocks, in units of 512 bytes, as EROFS reports it.
func (i *Inode) Blocks() int64 { return blocksOf(i.Size) }

func (i *Inode) offset() int64 { return metaOffset + int64(i.Nid)*nidSize }

// body is the offset of what follows inode and attributes.
func (i *Inode) body() int64 { return i.offset() + InodeSize + i.xattrs }

// Root returns the nid of the root directory.
func (t *Tree) Root() uint64 { return rootNid }

// Inode reads an inode.
func (t *Tree) Inode(nid uint64) (Inode, error) {
	ino, err := t.inode(nid)
	if err != nil {
		return Inode{}, fmt.Errorf("inode %d: %w", nid, err)
	}
	return ino, nil
}

func (t *Tree) inode(nid uint64) (Inode, error) {
	if nid < rootNid || nid > uint64(t.size-metaOffset-InodeSize)/nidSize {
		return Inode{}, corrupt("outside of the tree")
	}
	buf := getBlock()
	defer putBlock(buf)
	b := buf[:InodeSize]
	ino := Inode{Nid: nid}
	if err := t.read(b, ino.offset()); err != nil {
		return Inode{}, err
	}
	return ino, ino.decode(b)
}

// decode parses the 64 bytes of an extended inode.
func (i *Inode) decode(b []byte) error {
	le := binary.LittleEndian
	format := le.Uint16(b[0:])
	i.layout = format >> 1
	if format&1 != formatExtended ||
		i.layout != layoutPlain && i.layout != layoutInline && i.layout != layoutChunked {
		return corrupt("format %#x", format)
	}
	i.xattrs = xattrArea(le.Uint16(b[2:]))
	i.HasXattrs = i.xattrs > 0
	i.Mode = uint32(le.Uint16(b[4:]))
	i.Size = int64(le.Uint64(b[8:]))
	i.raw = le.Uint32(b[16:])
	i.UID, i.GID = le.Uint32(b[24:]), le.Uint32(b[28:])
	nsec := le.Uint32(b[40:])
	i.Mtime = time.Unix(int64(le.Uint64(b[32:])), int64(nsec))
	i.Nlink = le.Uint32(b[44:])
	switch {
	case i.Type() == 0:
		return corrupt("mode %#o", i.Mode)
	case i.Size < 0 || i.Size > maxFile:
		return corrupt("size %d", i.Size)
	case nsec >= 1e9:
		return corrupt("%d nanoseconds", nsec)
	case i.layout == layoutChunked && i.Mode&modeType != modeRegular:
		return corrupt("mode %#o in chunks", i.Mode)
	}
	switch i.Mode & modeType {
	case modeChar, modeBlock:
		i.Rdev = uint64(i.raw)
	}
	return nil
}

// read fills p from the image.
func (t *Tree) read(p []byte, off int64) error {
	if off < 0 || off > t.size-int64(len(p)) {
		return corrupt("%d bytes at %d: outside of the tree", len(p), off)
	}
	return readFull(t.r, p, off)
}

// flat returns where byte off of a directory or symbolic link lies, and how
// many bytes from there on lie together.
func (t *Tree) flat(ino *Inode, off int64) (at, n int64, err error) {
	blocks := ino.Size &^ (BlockSize - 1) // bytes in whole blocks
	switch {
	case ino.layout == layoutInline && off >= blocks:
		return ino.body() + off - blocks, ino.Size - off, nil
	case ino.layout == layoutInline:
		return int64(ino.raw)*BlockSize + off, blocks - off, nil
	case ino.layout == layoutPlain:
		return int64(ino.raw)*BlockSize + off, ino.Size - off, nil
	}
	return 0, 0, corrupt("layout %d", ino.layout)
}

// readFlat fills p with the bytes of a directory or symbolic link from off on.
func (t *Tree) readFlat(ino *Inode, p []byte, off int64) error {
	for len(p) > 0 {
		at, n, err := t.flat(ino, off)
		if err != nil {
			return err
		}
		n = min(n, int64(len(p)))
		if n <= 0 {
			return corrupt("read at %d of %d bytes", off, ino.Size)
		}
		if err := t.read(p[:n], at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Readlink returns the target of a symbolic link.
func (t *Tree) Readlink(nid uint64) (string, error) {
	s, err := t.readlink(nid)
	if err != nil {
		return "", fmt.Errorf("read link %d: %w", nid, err)
	}
	return s, nil
}

func (t *Tree) readlink(nid uint64) (string, error) {
	ino, err := t.inode(nid)
	if err != nil {
		return "", err
	}
	if ino.Type() != Symlink {
		return "", corrupt("mode %#o", ino.Mode)
	}
	if ino.Size == 0 || ino.Size > maxTarget {
		return "", corrupt("target of %d bytes", ino.Size)
	}
	b := make([]byte, ino.Size)
	if err := t.readFlat(&ino, b, 0); err != nil {
		return "", err
	}
	return string(b), nil
}

// Xattrs calls fn for the extended attributes of a file, by full name, until it returns false. The
// value is valid during the call alone.
func (t *Tree) Xattrs(nid uint64, fn func(name string, value []byte) bool) error {
	if err := t.eachXattr(nid, fn); err != nil {
		return fmt.Errorf("extended attributes of inode %d: %w", nid, err)
	}
	return nil
}

// Xattr returns the value of an extended attribute; ErrNoXattr where there is none.
func (t *Tree) Xattr(nid uint64, name string) ([]byte, error) {
	value, found := []byte(nil), false
	err := t.eachXattr(nid, func(n string, v []byte) bool {
		if n == name {
			value, found = append([]byte{}, v...), true
		}
		return !found
	})
	if err == nil && !found {
		err = ErrNoXattr
	}
	if err != nil {
		return nil, fmt.Errorf("extended attribute %q of inode %d: %w", name, nid, err)
	}
	return value, nil
}

func (t *Tree) eachXattr(nid uint64, fn func(string, []byte) bool) error {
	ino, err := t.inode(nid)
	if err != nil || ino.xattrs == 0 {
		return err
	}
	area := make([]byte, ino.xattrs) // at most 256 KiB
	if err := t.read(area, ino.offset()+InodeSize); err != nil {
		return err
	}
	return eachXattr(area, fn)
}

// blocks are the buffers of reads that return nothing of what they read.
var blocks = sync.Pool{New: func() any { return new([BlockSize]byte) }}

func getBlock() *[BlockSize]byte  { return blocks.Get().(*[BlockSize]byte) }
func putBlock(b *[BlockSize]byte) { blocks.Put(b) }
