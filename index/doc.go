// Package index is the description of one image layer: where every file of it lies (the tree) and how
// its bytes come out of the compressed blob (the spans).
//
// A layer's uncompressed tar is an address space, the device. The tree is an image of package erofs,
// whose files point into the device; the spans map device ranges to blob ranges with what it takes
// to start decoding there, and the digest of what has to come out.
//
// The local form of an index is one file. Its first 1024 bytes, which EROFS leaves to others, are
// Mica's header; the EROFS image follows, then the span table and the list of implicit directories.
// The kernel mounts the very file. Opening reads 1.5 KiB, whatever the number of files. Offset
// tables are in docs/index-format.md.
//
// Package bundle carries the indexes of an image's layers to a registry and back. A packed one comes
// back by Restore, which writes the file again of what it was made of, and Check is for all others.
//
//	tar scan ──Draft──▶ Write ──file──▶ Open ──▶ Tree, Spans ──▶ fs
//	                               │         ▲
//	                               └─ bundle ┘ (Restore, or Check)
//
// Bytes that come from elsewhere are checked in two depths: every method of Layer stays inside its
// bounds whatever the bytes say, and Check reads the whole file and accepts only what Write could
// have made, before a kernel sees it.
//
// A Layer may be used by any number of goroutines at once. A Draft belongs to one goroutine at a
// time, during Write as well.
package index
