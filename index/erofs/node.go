package erofs

import "time"

// Node is one inode of a tree in memory: what a scan of a layer's tar gives, and what a Plan
// writes.
//
// Hard links are two directory entries that hold the same *Node.
type Node struct {
	Mode     uint32 // st_mode: type and permission bits, as in Linux
	UID, GID uint32
	Mtime    time.Time // the zero Time means the epoch
	Rdev     uint64    // device number as unix.Mkdev makes it; character and block devices only
	Size     int64     // regular files: bytes; others: ignored
	Target   string    // symbolic links only, 1 to 4095 bytes

	// Xattrs by full name. A Plan keeps those whose prefix EROFS knows: user.,
	// trusted., security., system.posix_acl_access and system.posix_acl_default.
	// Others cannot be represented and are dropped.
	Xattrs map[string]string

	// Extents says where a regular file's bytes lie in the device, in file
	// order, without overlaps. What no extent covers is a hole.
	Extents []Extent

	// Children of a directory, by name; nil for everything else.
	Children map[string]*Node

	// Implicit marks a directory that the tar does not mention: its
	// attributes come from the same directory of the layer below, if any.
	Implicit bool

	at place // where the last Plan, or Same, has put it
}

// Extent is a piece of a regular file that lies in the layer's device, or,
// where Data is set, in the tree itself.
//
// A piece must begin at a multiple of BlockSize in the file and in the device, and
// end at one in the file or at the file's end. What cannot is kept in the tree, in whole
// blocks of the file (from a multiple of BlockSize up to one, or to the file's
// end), with Data holding what the tar has for them and zeros for holes.
type Extent struct {
	File   int64 // offset in the file, bytes
	Device int64 // offset in the device, bytes; in what Tree.Extents reports, Hole for a hole
	Size   int64
	// Data has Size bytes when the piece is kept in the tree. Device is then where the device has
	// the same bytes, too; 0: nowhere.
	Data []byte
}

// Hole is the Device of an extent, in what Tree.Extents reports, that reads as zeros.
const Hole = -1
