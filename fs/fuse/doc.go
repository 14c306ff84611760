// Package fuse serves a layer to the kernel over FUSE: either its device, as
// the one file of a directory, for EROFS to mount (erofs mode), or its whole
// tree (fuse mode).
//
// A request's way: the kernel → conn, which reads /dev/fuse → a tree's method by go-fuse, for
// metadata → reply; or, for reads, Filler.Fill, which waits for the network → a buffer of Memory →
// Device.ReadAt → reply. Nothing is written, nothing changes: node IDs are those of the index (a
// node is the same in every daemon that ever serves it), names, attributes and contents are valid
// for ever, and the kernel is told so. There is no state by node and none by open file. So a mount
// can outlive its server: see Saved.
//
// Requests are answered in parallel. A read ends when its caller is killed, when the mount ends, or
// with the Device's answer, whole or an error; no other signal ends it (see conn.interrupt). An
// error is not remembered, the next read asks again.
package fuse
