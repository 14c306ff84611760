package fuse

import (
	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// lostFS answers every request with EIO. No ENOSYS, which the kernel would remember.
type lostFS struct{ gofuse.RawFileSystem }

var _ filesystem = lostFS{}

func (lostFS) Lookup(<-chan struct{}, *gofuse.InHeader, string, *gofuse.EntryOut) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) GetAttr(<-chan struct{}, *gofuse.GetAttrIn, *gofuse.AttrOut) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) Access(<-chan struct{}, *gofuse.AccessIn) gofuse.Status { return gofuse.EIO }

func (lostFS) Readlink(<-chan struct{}, *gofuse.InHeader) ([]byte, gofuse.Status) {
	return nil, gofuse.EIO
}

func (lostFS) GetXAttr(<-chan struct{}, *gofuse.InHeader, string, []byte) (uint32, gofuse.Status) {
	return 0, gofuse.EIO
}

func (lostFS) ListXAttr(<-chan struct{}, *gofuse.InHeader, []byte) (uint32, gofuse.Status) {
	return 0, gofuse.EIO
}

func (lostFS) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) ReadDir(<-chan struct{}, *gofuse.ReadIn, *gofuse.DirEntryList) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) ReadDirPlus(<-chan struct{}, *gofuse.ReadIn, *gofuse.DirEntryList) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.OK }

func (lostFS) Lseek(<-chan struct{}, *gofuse.LseekIn, *gofuse.LseekOut) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) StatFs(<-chan struct{}, *gofuse.InHeader, *gofuse.StatfsOut) gofuse.Status {
	return gofuse.EIO
}

func (lostFS) file(uint64) (file, error) { return nil, unix.EIO }
