// Package indextest makes small layers for tests of indexes: a draft, and the device that its files
// point into. A test imports it with a dot, because a layer is spelled as a list of what is in it:
//
//	LayerOf(File("a/b", "content"), Hardlink("c", "a/b"), Dir("d", Mode(0o700)))
package indextest

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// Layer is a layer in the making.
type Layer struct {
	Draft  index.Draft
	Device bytes.Buffer
}

// Entry puts something into a layer, at a path without a leading slash. Parents that are missing
// are made as implicit directories.
type Entry func(l *Layer)

// Attr changes a node.
type Attr func(n *erofs.Node)

var someTime = time.Unix(1700000000, 123456789)

// LayerOf makes a layer of entries, with spans of 4 KiB.
func LayerOf(entries ...Entry) *Layer {
	l := &Layer{}
	l.Draft.Root = newDir()
	l.Draft.Root.Mtime = someTime
	for _, e := range entries {
		e(l)
	}
	l.Finish(int64(l.Device.Len()))
	return l
}

func newDir() *erofs.Node {
	return &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: map[string]*erofs.Node{}}
}

// Finish sets header and spans for a device of size bytes.
func (l *Layer) Finish(size int64) {
	l.Draft.Header = index.Header{
		Layer: digest.FromString("layer"), LayerSize: size,
		DiffID: digest.FromBytes(l.Device.Bytes()), DeviceSize: size,
		WindowsSize: 100,
	}
	l.Draft.Spans = nil
	step := max(4096, min(wholeBlocks(size/64), index.MaxSpanSize))
	for off := int64(0); off < size; off += step {
		n := min(step, size-off)
		sum := sha256.Sum256([]byte{byte(off >> 12), byte(off >> 20)})
		l.Draft.Spans = append(l.Draft.Spans,
			index.Span{Device: off, Size: n, Blob: off, BlobSize: n, Digest: sum})
	}
}

// wholeBlocks rounds n bytes up to whole blocks.
func wholeBlocks(n int64) int64 {
	return (n + erofs.BlockSize - 1) / erofs.BlockSize * erofs.BlockSize
}

// alloc appends content to the device, behind a block that stands for its header.
func (l *Layer) alloc(content string) (off int64) {
	l.Device.Write(bytes.Repeat([]byte{'H'}, erofs.BlockSize))
	off = int64(l.Device.Len())
	l.Device.WriteString(content)
	l.Device.Write(make([]byte, wholeBlocks(int64(len(content)))-int64(len(content))))
	return off
}

// Dir returns a directory, which is made as an implicit one where it is missing.
func (l *Layer) Dir(p string) *erofs.Node {
	n := l.Draft.Root
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" || name == "." {
			continue
		}
		if n.Children[name] == nil {
			n.Children[name] = newDir()
			n.Children[name].Implicit = true
		}
		n = n.Children[name]
	}
	return n
}

// Put adds a node.
func (l *Layer) Put(p string, n *erofs.Node, attrs ...Attr) {
	n.Mtime = someTime
	for _, a := range attrs {
		a(n)
	}
	l.Dir(path.Dir(p)).Children[path.Base(p)] = n
}

// File is a regular file whose content lies in the device.
func File(p, content string, attrs ...Attr) Entry {
	return func(l *Layer) {
		n := &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(content))}
		if content != "" {
			n.Extents = []erofs.Extent{{Device: l.alloc(content), Size: n.Size}}
		}
		l.Put(p, n, attrs...)
	}
}

// Pieced is a sparse file of size bytes.
func Pieced(p string, size int64, pieces ...erofs.Extent) Entry {
	return func(l *Layer) {
		for i := range pieces {
			if e := &pieces[i]; e.Device == onDevice {
				e.Device = l.alloc(string(e.Data))
				e.Data = nil
			}
		}
		l.Put(p, &erofs.Node{Mode: unix.S_IFREG | 0o600, Size: size, Extents: pieces})
	}
}

// onDevice is the Device of a piece whose Data are to be put into the device.
const onDevice = -1

// OnDevice is a piece for Pieced that lies in the device, at offset off of the file.
func OnDevice(off int64, content string) erofs.Extent {
	return erofs.Extent{
		File: off, Device: onDevice, Size: int64(len(content)), Data: []byte(content),
	}
}

// InTree is a piece for Pieced that is kept in the tree, at offset off of the file.
func InTree(off int64, content string) erofs.Extent {
	return erofs.Extent{File: off, Size: int64(len(content)), Data: []byte(content)}
}

// Dir is a directory that the tar names.
func Dir(p string, attrs ...Attr) Entry {
	return func(l *Layer) {
		n := l.Dir(p)
		n.Implicit = false
		n.Mtime = someTime
		for _, a := range attrs {
			a(n)
		}
	}
}

// Implicit is a directory that the tar does not name.
func Implicit(p string) Entry { return func(l *Layer) { l.Dir(p) } }

// Symlink is a symbolic link.
func Symlink(p, target string, attrs ...Attr) Entry {
	return func(l *Layer) {
		l.Put(p, &erofs.Node{Mode: unix.S_IFLNK | 0o777, Target: target}, attrs...)
	}
}

// Node is a file of any type, with a device number as unix.Mkdev makes it.
func Node(p string, mode uint32, rdev uint64, attrs ...Attr) Entry {
	return func(l *Layer) { l.Put(p, &erofs.Node{Mode: mode, Rdev: rdev}, attrs...) }
}

// Hardlink is a second name of what is at path old.
func Hardlink(p, old string) Entry {
	return func(l *Layer) {
		l.Dir(path.Dir(p)).Children[path.Base(p)] = l.Dir(path.Dir(old)).Children[path.Base(old)]
	}
}

// Entries are the entries 0 to n-1.
func Entries(n int, entry func(i int) Entry) Entry {
	return func(l *Layer) {
		for i := range n {
			entry(i)(l)
		}
	}
}

// Mode sets the permission bits.
func Mode(m uint32) Attr { return func(n *erofs.Node) { n.Mode = n.Mode&unix.S_IFMT | m } }

// Owner sets user and group.
func Owner(uid, gid uint32) Attr { return func(n *erofs.Node) { n.UID, n.GID = uid, gid } }

// Mtime sets the time of the last change, seconds and nanoseconds since the epoch.
func Mtime(sec, nsec int64) Attr { return func(n *erofs.Node) { n.Mtime = time.Unix(sec, nsec) } }

// Xattr adds an extended attribute, by its full name.
func Xattr(name, value string) Attr {
	return func(n *erofs.Node) {
		n.Xattrs = maps.Clone(n.Xattrs)
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = value
	}
}

// Write returns the index file.
func (l *Layer) Write(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := index.Write(&b, &l.Draft)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("Write says %d bytes and wrote %d", n, b.Len())
	}
	return b.Bytes()
}

// Open writes the index and opens it.
func (l *Layer) Open(t testing.TB) *index.Layer {
	t.Helper()
	return OpenBytes(t, l.Write(t))
}

// OpenBytes opens an index file.
func OpenBytes(t testing.TB, b []byte) *index.Layer {
	t.Helper()
	x, err := index.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// Files writes index and device to files of a temporary directory, and returns their names.
func (l *Layer) Files(t testing.TB) (file, device string) {
	t.Helper()
	dir := t.TempDir()
	file, device = filepath.Join(dir, "index"), filepath.Join(dir, "device")
	if err := os.WriteFile(file, l.Write(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(device, l.Device.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(device, l.Draft.DeviceSize); err != nil {
		t.Fatal(err)
	}
	return file, device
}
