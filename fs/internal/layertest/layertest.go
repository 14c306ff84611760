// Package layertest makes small layers for tests of mounts: index file, device
// file, and what is to be seen in them.
package layertest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
)

// Layer is a layer on disk.
type Layer struct {
	Index  string // path of the index file
	Device string // path of the device file
	Data   []byte // of the device
	Draft  *index.Draft
}

// Builder collects the files of a layer.
type Builder struct {
	Root *erofs.Node
	data bytes.Buffer // the device so far
}

// NewBuilder returns a builder of a layer with an empty root directory.
func NewBuilder() *Builder {
	return &Builder{Root: &erofs.Node{Mode: unix.S_IFDIR | 0o755, Mtime: time.Unix(1, 1),
		Children: map[string]*erofs.Node{}}}
}

// Add puts a node at a path; directories on the way are made.
func (b *Builder) Add(path string, n *erofs.Node) *erofs.Node {
	dir := b.Root
	names := strings.Split(path, "/")
	for _, name := range names[:len(names)-1] {
		next := dir.Children[name]
		if next == nil {
			next = &erofs.Node{Mode: unix.S_IFDIR | 0o755, Mtime: time.Unix(2, 2),
				Children: map[string]*erofs.Node{}}
			dir.Children[name] = next
		}
		dir = next
	}
	if n.Mode&unix.S_IFMT == unix.S_IFDIR && n.Children == nil {
		n.Children = map[string]*erofs.Node{}
	}
	if n.Mtime.IsZero() {
		n.Mtime = time.Unix(1_700_000_000, 123_456_789)
	}
	dir.Children[names[len(names)-1]] = n
	return n
}

// File adds a regular file whose content lies in the device, behind a block
// that stands for a tar header.
func (b *Builder) File(path string, mode uint32, content []byte) *erofs.Node {
	n := &erofs.Node{Mode: unix.S_IFREG | mode, Size: int64(len(content))}
	b.data.Write(bytes.Repeat([]byte("header! "), erofs.BlockSize/8))
	if len(content) > 0 {
		n.Extents = []erofs.Extent{{Device: int64(b.data.Len()), Size: int64(len(content))}}
	}
	b.data.Write(content)
	b.data.Write(make([]byte, (erofs.BlockSize-len(content)%erofs.BlockSize)%erofs.BlockSize))
	return b.Add(path, n)
}

// Write writes the layer's files into dir.
func (b *Builder) Write(dir string) (*Layer, error) {
	data := b.data.Bytes()
	if len(data) == 0 {
		data = make([]byte, erofs.BlockSize)
	}
	size := int64(len(data))
	d := &index.Draft{
		Header: index.Header{
			Layer: digest.FromBytes(data), LayerSize: size, DiffID: digest.FromBytes(data), DeviceSize: size,
		},
		Root:  b.Root,
		Spans: spans(data),
	}
	l := &Layer{Index: filepath.Join(dir, "index"), Device: filepath.Join(dir, "device"), Data: data, Draft: d}
	if err := os.WriteFile(l.Device, data, 0o600); err != nil {
		return nil, err
	}
	f, err := os.Create(l.Index)
	if err != nil {
		return nil, err
	}
	if _, err := index.Write(f, d); err != nil {
		return nil, fmt.Errorf("write index: %w", err)
	}
	return l, f.Close()
}

// spans covers the device with spans as those of an uncompressed tar.
func spans(data []byte) []index.Span {
	const size = 4 << 20
	var out []index.Span
	for off := 0; off < len(data); off += size {
		b := data[off:min(off+size, len(data))]
		out = append(out, index.Span{
			Device: int64(off), Size: int64(len(b)), Blob: int64(off), BlobSize: int64(len(b)),
			Codec: index.Stored, Digest: sha256.Sum256(b),
		})
	}
	return out
}

// Make writes the layer into a directory of the test.
func (b *Builder) Make(t testing.TB) *Layer {
	t.Helper()
	l, err := b.Write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Open opens the layer's index for the test's duration.
func (l *Layer) Open(t testing.TB) *index.Layer {
	t.Helper()
	f, err := os.Open(l.Index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := index.Open(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// Random returns n bytes that are the same for the same seed.
func Random(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, seed))
	for i := 0; i+8 <= n; i += 8 {
		v := rng.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

// Nasty returns a layer with one of everything that a tree can hold.
func Nasty() *Builder {
	b := NewBuilder()
	b.Root.Mtime = time.Unix(1_600_000_000, 5)
	b.File("empty", 0o600, nil)
	b.File("one", 0o644, []byte("x"))
	b.File("block", 0o644, Random(512, 1))
	b.File("odd", 0o640, Random(70_001, 2)).UID = 70_000
	b.File("big", 0o644, Random(5<<20+13, 3))
	b.File("suid", 0o4755, []byte("#!/bin/sh\n"))
	b.File("old", 0o644, []byte("before 1970")).Mtime = time.Unix(-86_400, 999_999_999)
	b.File("late", 0o644, []byte("after 2038")).Mtime = time.Unix(5_000_000_000, 1)
	hard := b.File("dir/hard", 0o444, []byte("linked twice"))
	b.Add("dir/sub/again", hard)
	b.Add("other/third", hard)
	b.Add("link", &erofs.Node{Mode: unix.S_IFLNK | 0o777, Target: "dir/hard"})
	b.Add("far", &erofs.Node{Mode: unix.S_IFLNK | 0o777, Target: "/" + strings.Repeat("x/", 2000)})
	b.Add("dangling", &erofs.Node{Mode: unix.S_IFLNK | 0o777, Target: "nowhere"})
	b.Add("null", &erofs.Node{Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)})
	b.Add("disk", &erofs.Node{Mode: unix.S_IFBLK | 0o660, Rdev: unix.Mkdev(259, 1_000)})
	b.Add("fifo", &erofs.Node{Mode: unix.S_IFIFO | 0o600})
	b.Add("whiteout", &erofs.Node{Mode: unix.S_IFCHR})
	b.Add("opaque", &erofs.Node{Mode: unix.S_IFDIR | 0o700,
		Xattrs: map[string]string{"trusted.overlay.opaque": "y"}})
	b.Add("sticky", &erofs.Node{Mode: unix.S_IFDIR | 0o1777, GID: 1 << 31})
	b.File("capable", 0o755, []byte("ping")).Xattrs = map[string]string{
		"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"user.empty":          "", "user.long": strings.Repeat("v", 1000), "trusted.x": "y",
	}
	b.File("not utf-8 \xff\xfe", 0o644, []byte("name"))
	b.File(strings.Repeat("n", 255), 0o644, []byte("long name"))
	sparse := b.File("sparse", 0o644, Random(4096, 4))
	sparse.Size, sparse.Extents[0].File = 1<<20+5, 512<<10
	for i := range 2_000 {
		b.File(fmt.Sprintf("many/file-%04d", i), 0o644, fmt.Appendf(nil, "content of %d", i))
	}
	return b
}
