package bundle

import "encoding/binary"

// A packed index is what a small index file is made of, by kinds of values: names with names, sizes
// with sizes. As an index file says much twice (where a file lies follows from the file before, a
// directory's entries name inodes that follow each other, half of an inode is zero), this takes
// half as many bytes as the file, both compressed, and the file that a reader makes of it, with
// Write's own code, is one that Check accepts. docs/index-format.md describes it.
//
// Layout before compression: a size of 4 bytes for each column, then the columns. Numbers in them
// are varints as encoding/binary has them (zigzag where they can be negative), strings end with a
// NUL.
type columns [columnCount][]byte

// The columns. Files come in the order of their inodes; an entry is one of a directory's, "." and
// ".." left out, in the order of the directories and names, which is that of the inodes they name
// first. The root is the first entry of all, without a name.
const (
	colHeader  = iota // the file's header, 1024 bytes
	colEntries        // an entry: 0, another name of an earlier file; else 1 + the number of its kind, in the order in which they come first
	colKinds          // a kind: flags 1, mode 2, uid 4, gid 4
	colLinks          // of an entry that is 0: how many files earlier its file came first
	colNames          // a name an entry, and an empty one at a directory's end
	colTimes          // a file: the number of its mtime, in the order in which they come first
	colMoments        // an mtime: seconds after the one before (signed), nanoseconds
	colNumbers        // regular files: bytes; character and block devices: device number
	colPlaces         // regular files that lie in one piece: blocks (signed) between the header block behind the one before, and it
	colTargets        // symbolic links: target
	colXattrs         // files with extended attributes: their number; for each name, bytes of the value, value
	colPieces         // other regular files: number of pieces; for each blocks after the one before, bytes, 0 and block of the device or 1 and content
	colSpans          // a span: bytes of the device, gap in the blob (signed), bytes of the blob, 8 x codec + bit, bytes of its window, if it has one gap in the windows (signed)
	colDigests        // a span: sha256, and that of its window where it is stated
	columnCount
)

// Flags of a kind.
const (
	kindXattrs   = 1 << iota // files have extended attributes
	kindImplicit             // implicit directories
	kindPieces               // regular files that are not one piece of the device, nor empty
	kindFlags    = 1<<iota - 1
)

// kind is what many files have in common.
type kind struct {
	flags    uint8
	mode     uint16
	uid, gid uint32
}

const kindSize = 11

// append encodes k.
func (k kind) append(b []byte) []byte {
	le := binary.LittleEndian
	return le.AppendUint32(le.AppendUint32(le.AppendUint16(append(b, k.flags), k.mode), k.uid),
		k.gid)
}

// decodeKind is append's inverse.
func decodeKind(b []byte) kind {
	le := binary.LittleEndian
	return kind{flags: b[0], mode: le.Uint16(b[1:]), uid: le.Uint32(b[3:]), gid: le.Uint32(b[7:])}
}

// moment is an mtime.
type moment struct {
	sec  int64
	nsec uint32
}

// Bounds of what is packed: a reader keeps all of it in memory, and about 300 bytes for each file.
const (
	maxPacked      = 16 << 20 // bytes of all columns
	maxPackedFiles = 1 << 16
	maxFile        = 1 << 52   // bytes of one file, as EROFS has it in an index
	maxBlocks      = 1<<32 - 2 // of a device
)
