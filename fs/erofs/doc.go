// Package erofs makes the kernel's own EROFS serve a layer: the index file is
// the file system's image, and the layer's device its data, either the
// store's file (local mode) or the file of a FUSE mount (erofs mode). And it finds
// out, by trying, which of the modes this kernel can do on this file
// system.
//
// The kernel takes both as files where it can (Linux 6.12 on, for backing files
// whose file system is not itself stacked), and through loop devices
// where it cannot. A device that this very process serves is mounted by a child
// process, a Mounter's. No data pass through here. All functions may be called
// in parallel, for different mount points.
package erofs
