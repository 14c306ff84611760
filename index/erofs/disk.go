package erofs

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/opencontainers/go-digest"
)

// BlockSize is the unit in which an image points into a device, bytes: a tar block.
const BlockSize = 512

// SuperOffset is where the superblock lies in the file, in bytes. What comes before is not the
// image's.
const SuperOffset = 1024

// InodeSize is how many bytes of an image each inode takes at the least.
const InodeSize = 64

// MaxDevice is how many bytes a device has at the most: 2 TiB.
const MaxDevice = int64(maxBlocks) * BlockSize

// Where the parts of the image lie in the file, in bytes. The superblock's place is EROFS's; the
// rest follows from it and from 512-byte blocks.
const (
	blockBits   = 9 // 1<<9 == BlockSize
	superSize   = 128
	slotOffset  = SuperOffset + superSize // the one device slot, in units of its size: 9
	slotSize    = 128
	metaOffset  = SuperOffset + BlockSize // inode nid lies at metaOffset + nid*nidSize
	nidSize     = 32
	rootNid     = 1 // as FUSE has it
	rootOffset  = metaOffset + rootNid*nidSize
	maxBlocks   = 1<<32 - 2                        // of 32 bits; all ones is a hole
	maxInline   = BlockSize                        // inode, xattrs and inline data share one block
	rootInline  = BlockSize - rootOffset%BlockSize // the root's nid is fixed, so it has less room
	nullBlock   = 1<<32 - 1                        // EROFS_NULL_ADDR: a hole
	direntSize  = 12
	chunkSize   = 8                                    // one chunk index
	maxChunks   = 1 << 22                              // of one file: a table of 32 MiB
	wholeBits   = 21                                   // of contiguous files: 512 B << 21 = 1 GiB
	maxFile     = maxChunks << (blockBits + wholeBits) // bytes: 4 PiB
	maxNameLen  = 255                                  // EROFS_NAME_LEN
	maxTarget   = 4095                                 // PATH_MAX without the NUL
	maxEntries  = 1 << 24                              // of one tree, "." and ".." not counted
	deviceInUse = 1                                    // device ID; 0 is the image itself
)

// Superblock feature bits (erofs_fs.h).
const (
	superMagic        = 0xE0F5E1E2
	compatMtime       = 0x2
	incompatChunked   = 0x4
	incompatDevices   = 0x8
	chunkWithIndexes  = 0x20
	chunkBitsMask     = 0x1f
	formatExtended    = 1 // bit 0 of i_format; the layout stands above it
	layoutPlain       = 0
	layoutInline      = 2
	layoutChunked     = 4
	superMetaBlock    = metaOffset / BlockSize
	superDeviceSlotAt = slotOffset / slotSize
)

// File types of st_mode.
const (
	modeType    = 0o170000
	modeSocket  = 0o140000
	modeSymlink = 0o120000
	modeRegular = 0o100000
	modeBlock   = 0o060000
	modeDir     = 0o040000
	modeChar    = 0o020000
	modeFIFO    = 0o010000
	modePerm    = 0o007777
)

// Type is the type of a directory entry, as EROFS stores it (FT_* of Linux).
type Type uint8

// The types that a directory entry can have.
const (
	Regular Type = iota + 1
	Directory
	CharDevice
	BlockDevice
	FIFO
	Socket
	Symlink
)

// typeOf returns the entry type for st_mode; 0 for a mode that has none.
func typeOf(mode uint32) Type {
	switch mode & modeType {
	case modeRegular:
		return Regular
	case modeDir:
		return Directory
	case modeChar:
		return CharDevice
	case modeBlock:
		return BlockDevice
	case modeFIFO:
		return FIFO
	case modeSocket:
		return Socket
	case modeSymlink:
		return Symlink
	}
	return 0
}

// Mode returns the type bits of st_mode for t; d_type is Mode()>>12.
func (t Type) Mode() uint32 {
	return [...]uint32{
		0, modeRegular, modeDir, modeChar, modeBlock, modeFIFO, modeSocket, modeSymlink,
	}[t&7]
}

// Device is what an image says of the device that its files lie in.
type Device struct {
	Size   int64         // bytes, MaxDevice at the most
	DiffID digest.Digest // a valid digest
}

// super is what differs from one superblock to the next.
type super struct {
	inodes uint64
	blocks int64 // of the image
	device Device
}

// encode returns the superblock's block: bytes 1024 to 1535 of the file. All
// else in it is constant, so a reader can compare instead of parsing.
//
// It has no checksum (EROFS_FEATURE_COMPAT_SB_CHKSUM): fsck.erofs up to 1.8 at least reads outside
// of its buffer when it checks one in blocks this small. An index file has a digest of the whole
// image.
func (s super) encode() [BlockSize]byte {
	var b [BlockSize]byte
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], rootNid)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], uint32(s.blocks))
	le.PutUint32(b[40:], superMetaBlock)
	copy(b[48:64], s.uuid())
	le.PutUint32(b[80:], incompatChunked|incompatDevices)
	le.PutUint16(b[86:], 1) // extra devices
	le.PutUint16(b[88:], superDeviceSlotAt)
	slot := b[slotOffset-SuperOffset:]
	copy(slot[:64], s.device.DiffID.Encoded())
	le.PutUint32(slot[64:], uint32(blocksOf(s.device.Size)))
	return b
}

// uuid derives the volume's UUID from the diffID: equal layers, equal images.
// Version 8 and the variant are those of RFC 9562.
func (s super) uuid() []byte {
	h := sha256.Sum256([]byte("mica volume " + s.device.DiffID.String()))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return h[:16]
}

// alignUp rounds n up to a multiple of unit, a power of two.
func alignUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

// blocksOf returns how many blocks hold n bytes.
func blocksOf(n int64) int64 { return (n + BlockSize - 1) >> blockBits }
