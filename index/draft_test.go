package index

import (
	"bytes"
	"crypto/sha256"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// layer is a small layer in the making: a draft, and the device that its files
// point into.
type layer struct {
	draft  Draft
	device bytes.Buffer
}

// entry puts something into a layer; parents that are missing are made.
type entry func(l *layer)

// attr changes a node.
type attr func(n *Node)

var someTime = time.Unix(1700000000, 123456789)

// layerOf makes a layer of entries, with spans of 4 KiB.
func layerOf(entries ...entry) *layer {
	l := &layer{}
	l.draft.Root = &Node{Mode: unix.S_IFDIR | 0o755, Mtime: someTime, Children: map[string]*Node{}}
	for _, e := range entries {
		e(l)
	}
	l.finish(int64(l.device.Len()))
	return l
}

// finish sets header and spans for a device of size bytes.
func (l *layer) finish(size int64) {
	l.draft.Header = Header{
		Layer: digest.FromString("layer"), LayerSize: size,
		DiffID: digest.FromBytes(l.device.Bytes()), DeviceSize: size,
		WindowsSize: 100,
	}
	l.draft.Spans = nil
	step := max(4096, min(alignUp(size/64, BlockSize), MaxSpanSize))
	for off := int64(0); off < size; off += step {
		n := min(step, size-off)
		sum := sha256.Sum256([]byte{byte(off >> 12), byte(off >> 20)})
		l.draft.Spans = append(l.draft.Spans, Span{Device: off, Size: n, Blob: off, BlobSize: n, Digest: sum})
	}
}

// alloc appends content to the device, behind a block that stands for its header.
func (l *layer) alloc(content string) (off int64) {
	l.device.Write(bytes.Repeat([]byte{'H'}, BlockSize))
	off = int64(l.device.Len())
	l.device.WriteString(content)
	l.device.Write(make([]byte, alignUp(int64(len(content)), BlockSize)-int64(len(content))))
	return off
}

// dir returns a directory, which is made as an implicit one if it is missing.
func (l *layer) dir(p string) *Node {
	n := l.draft.Root
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" || name == "." {
			continue
		}
		if n.Children[name] == nil {
			n.Children[name] = &Node{Mode: unix.S_IFDIR | 0o755, Children: map[string]*Node{}, Implicit: true}
		}
		n = n.Children[name]
	}
	return n
}

// put adds a node.
func (l *layer) put(p string, n *Node, attrs []attr) {
	n.Mtime = someTime
	for _, a := range attrs {
		a(n)
	}
	l.dir(path.Dir(p)).Children[path.Base(p)] = n
}

func file(p, content string, attrs ...attr) entry {
	return func(l *layer) {
		n := &Node{Mode: unix.S_IFREG | 0o644, Size: int64(len(content))}
		if content != "" {
			n.Extents = []Extent{{Device: l.alloc(content), Size: n.Size}}
		}
		l.put(p, n, attrs)
	}
}

// pieced adds a sparse file of the given size; pieces with Data and Device -1
// are put into the device.
func pieced(p string, size int64, pieces ...Extent) entry {
	return func(l *layer) {
		for i := range pieces {
			if e := &pieces[i]; e.Device == -1 {
				e.Device = l.alloc(string(e.Data))
				e.Data = nil
			}
		}
		l.put(p, &Node{Mode: unix.S_IFREG | 0o600, Size: size, Extents: pieces}, nil)
	}
}

// onDevice is a piece for pieced.
func onDevice(off int64, content string) Extent {
	return Extent{File: off, Device: -1, Size: int64(len(content)), Data: []byte(content)}
}

// inTree is a piece for pieced.
func inTree(off int64, content string) Extent {
	return Extent{File: off, Size: int64(len(content)), Data: []byte(content)}
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
	return func(l *layer) { l.put(p, &Node{Mode: unix.S_IFLNK | 0o777, Target: target}, attrs) }
}

func node(p string, mode uint32, rdev uint64, attrs ...attr) entry {
	return func(l *layer) { l.put(p, &Node{Mode: mode, Rdev: rdev}, attrs) }
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

func mode(m uint32) attr         { return func(n *Node) { n.Mode = n.Mode&unix.S_IFMT | m } }
func owner(uid, gid uint32) attr { return func(n *Node) { n.UID, n.GID = uid, gid } }
func mtime(sec, nsec int64) attr { return func(n *Node) { n.Mtime = time.Unix(sec, nsec) } }
func xattr(name, value string) attr {
	return func(n *Node) {
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
	n, err := Write(&b, &l.draft)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("Write says %d bytes and wrote %d", n, b.Len())
	}
	return b.Bytes()
}

// open writes the index and opens it.
func (l *layer) open(t testing.TB) *Layer {
	t.Helper()
	return openBytes(t, l.write(t))
}

func openBytes(t testing.TB, b []byte) *Layer {
	t.Helper()
	x, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// content returns what a file has to hold in a range.
func (l *layer) content(t testing.TB, device io.ReaderAt, n *Node, off, size int64) []byte {
	t.Helper()
	b := make([]byte, min(size, n.Size-off))
	for _, e := range n.Extents {
		from, to := max(off, e.File), min(off+int64(len(b)), e.File+e.Size)
		if from >= to {
			continue
		}
		if e.Data != nil {
			copy(b[from-off:to-off], e.Data[from-e.File:])
		} else if _, err := device.ReadAt(b[from-off:to-off], e.Device+from-e.File); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// walk calls fn for every name of the tree, directories before what is in them.
func (l *layer) walk(fn func(p string, n, parent *Node)) {
	var visit func(p string, n, parent *Node)
	visit = func(p string, n, parent *Node) {
		fn(p, n, parent)
		for name, c := range n.Children {
			visit(path.Join(p, name), c, n)
		}
	}
	visit("/", l.draft.Root, l.draft.Root)
}

// links counts the links that every node has to have.
func (l *layer) links() map[*Node]int {
	links := map[*Node]int{}
	l.walk(func(_ string, n, parent *Node) {
		links[n]++
		if n.Mode&unix.S_IFMT == unix.S_IFDIR {
			links[n]++
			if n != parent {
				links[parent]++
			}
		}
	})
	return links
}

// files writes index and device to a temporary directory.
func (l *layer) files(t testing.TB) (index, device string) {
	t.Helper()
	dir := t.TempDir()
	index, device = filepath.Join(dir, "index"), filepath.Join(dir, "device")
	if err := os.WriteFile(index, l.write(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(device, l.device.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(device, l.draft.DeviceSize); err != nil {
		t.Fatal(err)
	}
	return index, device
}

// nasty is all that a tree can hold, in the forms that break readers.
func nasty() *layer {
	long := strings.Repeat("n", maxNameLen)
	pattern := func(n int) string { return strings.Repeat("0123456789abcdef", n/16+1)[:n] }
	return layerOf(
		file("empty", ""),
		file("one", "x"),
		file("block", pattern(512)),
		file("blocks", pattern(5000), mode(0o4755), owner(1000, 100)),
		file("owner", "o", owner(4294967294, 4294967294), mode(0o2711)),
		file("old", "o", mtime(-86400*365*10, 999999999)),
		file("new", "n", mtime(1<<33, 1)),
		file("zero", "z", func(n *Node) { n.Mtime = time.Time{} }),
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
