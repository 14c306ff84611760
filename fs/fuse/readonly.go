package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// forever is a timeout for what cannot change, in seconds: 34 years, less than
// what the kernel's clock ticks can hold.
const forever = 1 << 30

// blockSize is st_blksize and the unit of statfs.
const blockSize = 4096

// readOnly are the answers that both file systems give alike. What neither
// defines is answered with ENOSYS, which the kernel remembers.
type readOnly struct{ gofuse.RawFileSystem }

func (readOnly) String() string { return Source }

// Open and OpenDir answer ENOSYS: the kernel then opens by itself, keeps its
// caches, and never asks again. Flush likewise: a close is no business of ours.

func (readOnly) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (readOnly) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (readOnly) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

// statfs describes a full, read-only file system of n bytes.
func statfs(out *gofuse.StatfsOut, n int64) {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	out.Blocks = uint64((n + blockSize - 1) / blockSize)
}
