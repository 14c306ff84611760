package index

import "time"

// Node is one inode of a layer's tree while it is being built: what a scan of
// the layer's tar produces and what Write turns into an EROFS inode.
//
// Hard links are two directory entries that hold the same *Node.
type Node struct {
	Mode     uint32 // st_mode: type and permission bits, as in Linux
	UID, GID uint32
	Mtime    time.Time
	Rdev     uint64 // device number as unix.Mkdev makes it; character and block devices only
	Size     int64  // regular files: bytes; others: ignored
	Target   string // symbolic links only
	Xattrs   map[string]string

	// Extents says where a regular file's bytes lie in the device, in file
	// order, without overlaps. What no extent covers is a hole.
	Extents []Extent

	// Digest is the sha256 of a regular file's content, zero where it was not
	// taken.
	Digest [32]byte

	// Children of a directory, by name; nil for everything else.
	Children map[string]*Node

	// Implicit marks a directory that the tar does not mention: its
	// attributes come from the same directory of the layer below, if any.
	Implicit bool
}

// Extent is a piece of a regular file that lies in the layer's device, or,
// where Data is set, in the tree itself (pieces that are not aligned to
// BlockSize in the file or in the device).
type Extent struct {
	File   int64 // offset in the file, bytes
	Device int64 // offset in the device, bytes
	Size   int64
	Data   []byte // len == Size when the piece is kept in the tree; Device is then ignored
}
