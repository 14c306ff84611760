package fuse

import (
	"context"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// DeviceName is the one file of a device mount.
const DeviceName = "device"

// Node IDs of a device mount. They never change: a later daemon that takes over
// the connection uses the same.
const (
	rootNode   = 1 // FUSE_ROOT_ID
	deviceNode = 2
)

// forever is a timeout for what cannot change, in seconds: 34 years, less than
// what the kernel's clock ticks can hold.
const forever = 1 << 30

// sector is the unit in which EROFS counts a device.
const sector = 512

// MountDevice mounts a directory at dir whose only file, "device", is dev, with
// zeros to the next multiple of 512 bytes. EROFS mounts it with
// device=DevicePath.
func MountDevice(ctx context.Context, dir string, dev Device, o Options) (*Mount, error) {
	d := &deviceFS{RawFileSystem: gofuse.NewDefaultRawFileSystem(), content: content{dev: dev}}
	d.filler, _ = dev.(Filler)
	d.length = (dev.Size() + sector - 1) / sector * sector
	// Only the kernel opens the device. ASYNC_DIO: EROFS with directio has
	// several requests under way for one reader; nobody else does
	// direct I/O here (see MountTree).
	return mount(ctx, dir, d, kind{
		flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
		with:  gofuse.CAP_ASYNC_DIO, without: gofuse.CAP_READDIRPLUS | gofuse.CAP_READDIRPLUS_AUTO,
	}, o)
}

// DevicePath is the path of the device in a device mount.
func (m *Mount) DevicePath() string { return filepath.Join(m.dir, DeviceName) }

// content reads a Device.
type content struct {
	dev    Device
	filler Filler // dev, if it is one
}

// fill calls Fill for the part of [off, off+n) that the device has.
func (c *content) fillAt(ctx context.Context, off, n int64) error {
	n = min(n, c.dev.Size()-off)
	if c.filler == nil || n <= 0 {
		return nil
	}
	return c.filler.Fill(ctx, off, n)
}

// deviceFS is the file system of a device mount.
type deviceFS struct {
	gofuse.RawFileSystem // answers ENOSYS to all that is not defined here
	content
	length int64 // of the file: the device's, in whole sectors
}

var _ filesystem = (*deviceFS)(nil)

func (d *deviceFS) String() string { return Source }

func (d *deviceFS) attr(node uint64, a *gofuse.Attr) gofuse.Status {
	switch node {
	case rootNode:
		*a = gofuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o500, Nlink: 2, Blksize: blockSize}
	case deviceNode:
		*a = gofuse.Attr{
			Ino: node, Mode: unix.S_IFREG | 0o400, Nlink: 1, Blksize: blockSize,
			Size: uint64(d.length), Blocks: uint64(d.length / sector),
		}
	default:
		return gofuse.Status(unix.ESTALE)
	}
	return gofuse.OK
}

func (d *deviceFS) Lookup(_ <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	out.EntryValid, out.AttrValid = forever, forever
	if h.NodeId != rootNode || name != DeviceName {
		return gofuse.OK // node 0: there is no such name, and never will be
	}
	out.NodeId = deviceNode
	return d.attr(deviceNode, &out.Attr)
}

func (d *deviceFS) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	out.AttrValid = forever
	return d.attr(in.NodeId, &out.Attr)
}

// Open and OpenDir answer ENOSYS: the kernel then opens by itself, and
// never asks again.
func (d *deviceFS) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (d *deviceFS) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (d *deviceFS) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, l *gofuse.DirEntryList) gofuse.Status {
	if in.NodeId != rootNode {
		return gofuse.ENOTDIR
	}
	entries := []gofuse.DirEntry{
		{Name: ".", Ino: rootNode, Mode: unix.S_IFDIR, Off: 1},
		{Name: "..", Ino: rootNode, Mode: unix.S_IFDIR, Off: 2},
		{Name: DeviceName, Ino: deviceNode, Mode: unix.S_IFREG, Off: 3},
	}
	for _, e := range entries[min(in.Offset, uint64(len(entries))):] {
		if !l.AddDirEntry(e) {
			break
		}
	}
	return gofuse.OK
}

func (d *deviceFS) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	statfs(out, d.length)
	return gofuse.OK
}

func (d *deviceFS) size(node uint64) (int64, error) {
	switch node {
	case deviceNode:
		return d.length, nil
	case rootNode:
		return 0, unix.EISDIR
	}
	return 0, fs.ErrNotExist
}

func (d *deviceFS) fill(ctx context.Context, _ uint64, off, n int64) error {
	return d.fillAt(ctx, off, n)
}

func (d *deviceFS) readAt(ctx context.Context, _ uint64, p []byte, off int64) error {
	n := max(min(int64(len(p)), d.dev.Size()-off), 0)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return d.dev.ReadAt(ctx, p[:n], off)
}

// blockSize is st_blksize and the unit of statfs.
const blockSize = 4096

// statfs describes a full, read-only file system of n bytes.
func statfs(out *gofuse.StatfsOut, n int64) {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	out.Blocks = uint64((n + blockSize - 1) / blockSize)
}
