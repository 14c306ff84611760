package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
)

// Dirent is one entry of a directory.
type Dirent struct {
	Nid  uint64
	Type Type
	Name string
	Next uint64 // cookie that goes on behind this entry
}

// dirBlock is a directory block in memory: entries of 12 bytes, then their
// names, in the order of their bytes.
type dirBlock struct {
	b     []byte // the used part
	count int
}

// readDirBlock reads block i of a directory into buf.
func (t *Tree) readDirBlock(ino *Inode, i int64, buf *[BlockSize]byte) (dirBlock, error) {
	b := buf[:min(BlockSize, ino.Size-i*BlockSize)]
	if err := t.readFlat(ino, b, i*BlockSize); err != nil {
		return dirBlock{}, err
	}
	if len(b) <= direntSize {
		return dirBlock{}, corrupt("directory block of %d bytes", len(b))
	}
	names := int(binary.LittleEndian.Uint16(b[8:]))
	if names < direntSize || names%direntSize != 0 || names >= len(b) {
		return dirBlock{}, corrupt("directory block: names at %d", names)
	}
	return dirBlock{b: b, count: names / direntSize}, nil
}

// entry returns entry i < d.count: its name is a part of the block.
func (d dirBlock) entry(i int) (nid uint64, typ Type, name []byte, err error) {
	le := binary.LittleEndian
	e := d.b[i*direntSize:]
	nid, typ = le.Uint64(e), Type(e[10])
	from, to := int(le.Uint16(e[8:])), len(d.b)
	if i+1 < d.count {
		to = int(le.Uint16(e[direntSize+8:]))
	}
	if from < d.count*direntSize || from >= to || to > len(d.b) {
		return 0, 0, nil, corrupt("directory entry: name from %d to %d", from, to)
	}
	name = d.b[from:to]
	if i+1 == d.count {
		if n := bytes.IndexByte(name, 0); n >= 0 {
			name = name[:n] // the last name ends where the zeros begin
		}
	}
	if len(name) == 0 || len(name) > maxNameLen || typ < Regular || typ > Symlink {
		return 0, 0, nil, corrupt("directory entry: name of %d bytes, type %d", len(name), typ)
	}
	return nid, typ, name, nil
}

// directory reads the inode of a directory.
func (t *Tree) directory(nid uint64) (Inode, error) {
	ino, err := t.inode(nid)
	if err == nil && ino.Type() != Directory {
		err = corrupt("mode %#o: not a directory", ino.Mode)
	}
	return ino, err
}

// Lookup returns the nid of an entry of a directory; an error that wraps
// fs.ErrNotExist where there is none. It reads one block for every time that the number
// of blocks, about 15 entries each, can be halved.
func (t *Tree) Lookup(dir uint64, name string) (uint64, error) {
	nid, err := t.lookup(dir, name)
	if err != nil {
		return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, err)
	}
	return nid, nil
}

func (t *Tree) lookup(dir uint64, name string) (uint64, error) {
	ino, err := t.directory(dir)
	if err != nil {
		return 0, err
	}
	buf, key := getBlock(), []byte(name)
	defer putBlock(buf)
	// Invariant: the name is in a block from lo on and before hi, if anywhere.
	lo, hi := int64(0), blocksOf(ino.Size)
	for lo < hi {
		mid := lo + (hi-lo)/2
		d, err := t.readDirBlock(&ino, mid, buf)
		if err != nil {
			return 0, err
		}
		nid, where, err := d.find(key)
		switch {
		case err != nil:
			return 0, err
		case where == 0:
			return nid, nil
		case where < 0:
			hi = mid
		default:
			lo = mid + 1
		}
	}
	return 0, fs.ErrNotExist
}

// find looks for a name in the block. where is 0 if it is there, negative if
// it can only be in a block before, positive if in one behind; fs.ErrNotExist
// if it would have to be in this one.
func (d dirBlock) find(name []byte) (nid uint64, where int, err error) {
	for lo, hi := 0, d.count; ; {
		if lo == hi {
			switch lo {
			case 0:
				return 0, -1, nil
			case d.count:
				return 0, 1, nil
			}
			return 0, 0, fs.ErrNotExist
		}
		mid := lo + (hi-lo)/2
		nid, _, found, err := d.entry(mid)
		if err != nil {
			return 0, 0, err
		}
		switch c := bytes.Compare(name, found); {
		case c == 0:
			return nid, 0, nil
		case c < 0:
			hi = mid
		default:
			lo = mid + 1
		}
	}
}

// ReadDir calls fn for the entries of a directory, "." and ".." among them, in the
// order of their names, until fn returns false. It begins at the first entry for cookie
// 0, or behind the entry whose Next was cookie: the byte offset in the directory
// of where to go on, the same for as long as the index is.
func (t *Tree) ReadDir(dir, cookie uint64, fn func(Dirent) bool) error {
	if err := t.readDir(dir, cookie, fn); err != nil {
		return fmt.Errorf("read directory %d: %w", dir, err)
	}
	return nil
}

func (t *Tree) readDir(dir, cookie uint64, fn func(Dirent) bool) error {
	ino, err := t.directory(dir)
	if err != nil {
		return err
	}
	if cookie >= uint64(ino.Size) {
		return nil
	}
	buf := getBlock()
	defer putBlock(buf)
	first := int(cookie % BlockSize / direntSize)
	for i := int64(cookie / BlockSize); i < blocksOf(ino.Size); i++ {
		d, err := t.readDirBlock(&ino, i, buf)
		if err != nil {
			return err
		}
		for k := first; k < d.count; k++ {
			nid, typ, name, err := d.entry(k)
			if err != nil {
				return err
			}
			next := uint64(i)*BlockSize + uint64(k+1)*direntSize
			if k+1 == d.count {
				next = uint64(i+1) * BlockSize
			}
			if !fn(Dirent{Nid: nid, Type: typ, Name: string(name), Next: next}) {
				return nil
			}
		}
		first = 0
	}
	return nil
}
