// Package erofs writes and reads the tree of a layer: a metadata-only EROFS image whose files point
// into the layer's device, the uncompressed tar, in place, in blocks of 512 bytes.
//
// An image is a part of a file: its superblock lies at SuperOffset, and its addresses count from
// the file's first byte. Package index makes the file; what else is in it, this package does not
// know. The kernel mounts the file (mount -t erofs -o device=TAR FILE DIR) and Tree reads the same
// bytes, so a node ID of the FUSE server, a nid and st_ino are one number.
//
//	Node  ──NewPlan──▶ Plan ──Write──▶ image ──Open──▶ Tree ──▶ FUSE, or the kernel
//	  ▲                                                 │
//	  └─────────── Same (what a scan of the tar gives) ─┘
//
// Bytes that come from elsewhere are checked in two depths: every method of Tree stays inside its
// bounds whatever the bytes say, and Tree.Check walks the whole tree and accepts only what a Plan
// could have written, before a kernel sees it.
//
// A Tree may be used by any number of goroutines at once, a buffered one by one. Nodes and their
// Plan belong to one goroutine at a time.
package erofs
