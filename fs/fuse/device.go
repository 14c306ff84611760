package fuse

import (
	"context"
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

// MountDevice mounts a directory at dir whose only file, "device", is dev, with
// zeros to the next multiple of 512 bytes. EROFS mounts it with
// device=DevicePath.
func MountDevice(ctx context.Context, dir string, dev Device, o Options) (*Mount, error) {
	// Only the kernel opens the device. ASYNC_DIO: EROFS with directio has
	// several requests under way for one reader; nobody else does
	// direct I/O here (see MountTree).
	return mount(ctx, dir, newDeviceFS(dev), kind{
		name:  KindDevice,
		flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
		with:  gofuse.CAP_ASYNC_DIO,
		// Open is answered; see there.
		without: gofuse.CAP_READDIRPLUS | gofuse.CAP_READDIRPLUS_AUTO | gofuse.CAP_NO_OPEN_SUPPORT,
	}, o)
}

// DevicePath is the path of the device in a device mount.
func (m *Mount) DevicePath() string { return filepath.Join(m.dir, DeviceName) }

// deviceFS is the file system of a device mount.
type deviceFS struct {
	readOnly
	dev *sectors
}

var _ filesystem = (*deviceFS)(nil)

func newDeviceFS(dev Device) *deviceFS {
	return &deviceFS{readOnly: readOnly{gofuse.NewDefaultRawFileSystem()}, dev: newSectors(dev)}
}

func (d *deviceFS) attr(node uint64, a *gofuse.Attr) gofuse.Status {
	switch node {
	case rootNode:
		*a = gofuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o500, Nlink: 2, Blksize: blockSize}
	case deviceNode:
		*a = gofuse.Attr{
			Ino: node, Mode: unix.S_IFREG | 0o400, Nlink: 1, Blksize: blockSize,
			Size: uint64(d.dev.size()), Blocks: uint64(d.dev.size() / sector),
		}
	default:
		return gofuse.Status(unix.ESTALE)
	}
	return gofuse.OK
}

func (d *deviceFS) Lookup(
	_ <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut,
) gofuse.Status {
	out.EntryValid, out.AttrValid = forever, forever
	if h.NodeId != rootNode || name != DeviceName {
		return gofuse.OK // node 0: there is no such name, and never will be
	}
	out.NodeId = deviceNode
	return d.attr(deviceNode, &out.Attr)
}

func (d *deviceFS) GetAttr(
	_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut,
) gofuse.Status {
	out.AttrValid = forever
	return d.attr(in.NodeId, &out.Attr)
}

// Open answers, unlike that of a tree: the device is opened a few times in its
// life, by the kernel for a mount or by this very process for a loop device,
// and a close of it must not ask us anything. It would, if this process
// were killed, be asked of a process that no longer answers and wait for ever.
func (d *deviceFS) Open(_ <-chan struct{}, _ *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE | gofuse.FOPEN_NOFLUSH
	return gofuse.OK
}

func (d *deviceFS) ReadDir(
	_ <-chan struct{}, in *gofuse.ReadIn, l *gofuse.DirEntryList,
) gofuse.Status {
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

func (d *deviceFS) StatFs(
	_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut,
) gofuse.Status {
	statfs(out, d.dev.size())
	return gofuse.OK
}

func (d *deviceFS) file(node uint64) (file, error) {
	switch node {
	case deviceNode:
		return d.dev, nil
	case rootNode:
		return nil, unix.EISDIR
	}
	return nil, unix.ESTALE
}
