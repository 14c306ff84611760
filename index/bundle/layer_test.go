package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
)

// layer is a small layer in the making: a draft, and the device that its files
// point into.
type layer struct {
	draft  index.Draft
	device bytes.Buffer
}

// entry puts something into a layer; parents that are missing are made.
type entry func(l *layer)

// attr changes a node.
type attr func(n *index.Node)

var someTime = time.Unix(1700000000, 123456789)

// layerOf makes a layer of entries, with spans of 4 KiB.
func layerOf(entries ...entry) *layer {
	l := &layer{}
	l.draft.Root = &index.Node{Mode: unix.S_IFDIR | 0o755, Mtime: someTime, Children: map[string]*index.Node{}}
	for _, e := range entries {
		e(l)
	}
	l.finish(int64(l.device.Len()))
	return l
}

// finish sets header and spans for a device of size bytes.
func (l *layer) finish(size int64) {
	l.draft.Header = index.Header{
		Layer: digest.FromString("layer"), LayerSize: size,
		DiffID: digest.FromBytes(l.device.Bytes()), DeviceSize: size,
		WindowsSize: 100,
	}
	l.draft.Spans = nil
	step := max(4096, min(alignUp(size/64), index.MaxSpanSize))
	for off := int64(0); off < size; off += step {
		n := min(step, size-off)
		sum := sha256.Sum256([]byte{byte(off >> 12), byte(off >> 20)})
		l.draft.Spans = append(l.draft.Spans, index.Span{Device: off, Size: n, Blob: off, BlobSize: n, Digest: sum})
	}
}

// alloc appends content to the device, behind a block that stands for its header.
func (l *layer) alloc(content string) (off int64) {
	l.device.Write(bytes.Repeat([]byte{'H'}, index.BlockSize))
	off = int64(l.device.Len())
	l.device.WriteString(content)
	l.device.Write(make([]byte, alignUp(int64(len(content)))-int64(len(content))))
	return off
}

// dir returns a directory, which is made as an implicit one if it is missing.
func (l *layer) dir(p string) *index.Node {
	n := l.draft.Root
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" || name == "." {
			continue
		}
		if n.Children[name] == nil {
			n.Children[name] = &index.Node{Mode: unix.S_IFDIR | 0o755, Children: map[string]*index.Node{}, Implicit: true}
		}
		n = n.Children[name]
	}
	return n
}

// put adds a node.
func (l *layer) put(p string, n *index.Node, attrs []attr) {
	n.Mtime = someTime
	for _, a := range attrs {
		a(n)
	}
	l.dir(path.Dir(p)).Children[path.Base(p)] = n
}

func file(p, content string, attrs ...attr) entry {
	return func(l *layer) {
		n := &index.Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(content))}
		if content != "" {
			n.Extents = []index.Extent{{Device: l.alloc(content), Size: n.Size}}
		}
		l.put(p, n, attrs)
	}
}

// pieced adds a sparse file of the given size; pieces with Data and Device -1
// are put into the device.
func pieced(p string, size int64, pieces ...index.Extent) entry {
	return func(l *layer) {
		for i := range pieces {
			if e := &pieces[i]; e.Device == -1 {
				e.Device = l.alloc(string(e.Data))
				e.Data = nil
			}
		}
		l.put(p, &index.Node{Mode: unix.S_IFREG | 0o600, Size: size, Extents: pieces}, nil)
	}
}

// onDevice is a piece for pieced.
func onDevice(off int64, content string) index.Extent {
	return index.Extent{File: off, Device: -1, Size: int64(len(content)), Data: []byte(content)}
}

// inTree is a piece for pieced.
func inTree(off int64, content string) index.Extent {
	return index.Extent{File: off, Size: int64(len(content)), Data: []byte(content)}
}

func dir(p string, attrs ...attr) entry {
	return func(l *layer) {
		n := l.dir(p)
		n.Implicit = false
		n.Mtime = someTime
		for _, a := range attrs {
			a(n)
		}
	}
}

func implicit(p string) entry { return func(l *layer) { l.dir(p) } }

func symlink(p, target string, attrs ...attr) entry {
	return func(l *layer) { l.put(p, &index.Node{Mode: unix.S_IFLNK | 0o777, Target: target}, attrs) }
}

func node(p string, mode uint32, rdev uint64, attrs ...attr) entry {
	return func(l *layer) { l.put(p, &index.Node{Mode: mode, Rdev: rdev}, attrs) }
}

func hardlink(p, old string) entry {
	return func(l *layer) {
		l.dir(path.Dir(p)).Children[path.Base(p)] = l.dir(path.Dir(old)).Children[path.Base(old)]
	}
}

func entries(n int, make func(i int) entry) entry {
	return func(l *layer) {
		for i := range n {
			make(i)(l)
		}
	}
}

func mode(m uint32) attr         { return func(n *index.Node) { n.Mode = n.Mode&unix.S_IFMT | m } }
func owner(uid, gid uint32) attr { return func(n *index.Node) { n.UID, n.GID = uid, gid } }
func mtime(sec, nsec int64) attr { return func(n *index.Node) { n.Mtime = time.Unix(sec, nsec) } }
func xattr(name, value string) attr {
	return func(n *index.Node) {
		n.Xattrs = maps.Clone(n.Xattrs)
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = value
	}
}

// write returns the index file.
func (l *layer) write(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := index.Write(&b, &l.draft)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("Write says %d bytes and wrote %d", n, b.Len())
	}
	return b.Bytes()
}

// open writes the index and opens it.
func (l *layer) open(t testing.TB) *index.Layer {
	t.Helper()
	return openBytes(t, l.write(t))
}

func openBytes(t testing.TB, b []byte) *index.Layer {
	t.Helper()
	x, err := index.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// wide is a layer of n files of a few KiB in directories of 100, on a device
// whose content is of no interest.
func wide(n int) *layer {
	random := rand.New(rand.NewPCG(1, 2))
	off := int64(0)
	l := layerOf(entries(n, func(i int) entry {
		return func(l *layer) {
			size := random.Int64N(20000) + 1
			l.put(fmt.Sprintf("usr/lib/package-%d/module_%d.py", i/100, i*7919%n),
				&index.Node{Mode: unix.S_IFREG | 0o644, Size: size, Extents: []index.Extent{{Device: off + 512, Size: size}}},
				[]attr{mtime(1600000000+random.Int64N(1e7)/1000*1000, 0)})
			off += 512 + alignUp(size)
		}
	}))
	l.finish(off)
	return l
}

// smallLayers are seeds: little of everything.
func smallLayers() []*layer {
	return []*layer{
		layerOf(),
		layerOf(file("a/b", "content"), hardlink("c", "a/b"), implicit("d/e"), symlink("s", "target"), node("n", unix.S_IFCHR, 0)),
		layerOf(file("x", "x", xattr("user.n", "value"), xattr("security.capability", "cap")), dir("o", xattr("trusted.overlay.opaque", "y"))),
		layerOf(pieced("p", 100000, onDevice(4096, "device"+string(make([]byte, 4090))), inTree(8192, string(make([]byte, 512))))),
		layerOf(entries(60, func(i int) entry { return file("many/"+string(rune('A'+i)), "") }), symlink("l", string(bytes.Repeat([]byte{'l'}, 600)))),
	}
}

// nasty is all that a tree can hold, in the forms that break readers.
func nasty() *layer {
	long := strings.Repeat("n", 255)
	pattern := func(n int) string { return strings.Repeat("0123456789abcdef", n/16+1)[:n] }
	return layerOf(
		file("empty", ""),
		file("one", "x"),
		file("block", pattern(512)),
		file("blocks", pattern(5000), mode(0o4755), owner(1000, 100)),
		file("owner", "o", owner(4294967294, 4294967294), mode(0o2711)),
		file("old", "o", mtime(-86400*365*10, 999999999)),
		file("new", "n", mtime(1<<33, 1)),
		file("zero", "z", func(n *index.Node) { n.Mtime = time.Time{} }),
		file(long, "long"), file(strings.Repeat("m", 254), "long"),
		file("not-utf8-\xff\xfe", "b"), file("new\nline\ttab\x01", "c"),
		file("!before-dot", ""), file("-", ""), file("...", ""), file(".a", ""), file("..b", ""), file("~", ""),
		dir("empty-dir", mode(0o1777)), dir("a/b/c/d", mode(0o700), owner(1, 2)), implicit("implicit/twice"),
		entries(200, func(i int) entry { return file("dir/"+long[:i+1], "in dir") }),
		entries(40, func(i int) entry { return dir("sizes/" + pattern(i*6+1)) }),
		symlink("abs", "/etc/passwd"), symlink("rel", "../one", owner(7, 8)),
		hardlink("a/b/linked", "blocks"), hardlink("hard", "blocks"), hardlink("a/hard-link-of-link", "abs"),
		entries(33, func(i int) entry { return symlink("links/"+pattern(i+1), pattern(420+i)) }),
		symlink("link-511", pattern(511)), symlink("link-512", pattern(512)), symlink("link-4095", pattern(4095)),
		symlink("link-xattr", pattern(100), xattr("trusted.big", pattern(400))),
		node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), node("disk", unix.S_IFBLK|0o660, unix.Mkdev(4095, 1048575)),
		node("fifo", unix.S_IFIFO|0o644, 0), node("socket", unix.S_IFSOCK|0o755, 0),
		node("whiteout", unix.S_IFCHR, 0), dir("opaque", xattr("trusted.overlay.opaque", "y")),
		file("caps", "c", xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")),
		file("xattrs", pattern(3000), xattr("user.a", ""), xattr("user.b", "\x00\xff"), xattr("trusted.t", "t"),
			xattr("security.s", "s"), xattr("user."+strings.Repeat("l", 250), "long")),
		file("big-xattrs", pattern(3000), xattr("user.1", pattern(60<<10)), xattr("user.2", pattern(65535)), xattr("trusted.3", pattern(60<<10))),
		file("acl", "a", xattr("system.posix_acl_access",
			"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")),
		dir("dir-xattrs", xattr("user.d", pattern(470))), file("dir-xattrs/f", "f"),
		pieced("hole", 100000),
		pieced("sparse", 40960+100, onDevice(4096, pattern(4096)), onDevice(12288, pattern(8192)), onDevice(40960, pattern(100))),
		pieced("sparse-512", 4096, onDevice(512, pattern(512)), onDevice(2048, pattern(1024))),
		pieced("sparse-end", 70000, onDevice(0, pattern(512))),
		pieced("in-tree", 8192, onDevice(0, pattern(1024)), inTree(1024, pattern(1024)), inTree(4096, pattern(4096))),
		pieced("in-tree-tail", 1700, onDevice(0, pattern(1024)), inTree(1024, pattern(676))),
		pieced("in-tree-far", 200000, inTree(131072, pattern(68928))),
	)
}

// sectionAt is where the records of an index file's sections lie in its header: offset, size and
// digest of tree, spans, implicit directories and content digests, 48 bytes each.
const sectionAt = 200

// resign makes header and digests fit to a file that was changed.
func resign(b []byte) []byte {
	le := binary.LittleEndian
	for i := range 3 {
		at := b[sectionAt+i*48:]
		off := le.Uint64(at)
		sum := sha256.Sum256(b[off : off+le.Uint64(at[8:])])
		copy(at[16:], sum[:])
	}
	clear(b[16:20])
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(b[16:], crc32.Checksum(b[:index.HeaderSize], castagnoli))
	return b
}
