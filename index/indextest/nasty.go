package indextest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
)

// Nasty is all that a tree can hold, in the forms that break readers.
func Nasty() *Layer {
	long := strings.Repeat("n", 255)
	pattern := func(n int) string { return strings.Repeat("0123456789abcdef", n/16+1)[:n] }
	return LayerOf(
		File("empty", ""),
		File("one", "x"),
		File("block", pattern(512)),
		File("blocks", pattern(5000), Mode(0o4755), Owner(1000, 100)),
		File("owner", "o", Owner(4294967294, 4294967294), Mode(0o2711)),
		File("old", "o", Mtime(-86400*365*10, 999999999)),
		File("new", "n", Mtime(1<<33, 1)),
		File("zero", "z", func(n *erofs.Node) { n.Mtime = time.Time{} }),
		File(long, "long"), File(strings.Repeat("m", 254), "long"),
		File("not-utf8-\xff\xfe", "b"), File("new\nline\ttab\x01", "c"),
		File("!before-dot", ""), File("-", ""), File("...", ""), File(".a", ""), File("..b", ""),
		File("~", ""),
		Dir("empty-dir", Mode(0o1777)), Dir("a/b/c/d", Mode(0o700), Owner(1, 2)),
		Implicit("implicit/twice"),
		Entries(200, func(i int) Entry { return File("dir/"+long[:i+1], "in dir") }),
		Entries(40, func(i int) Entry { return Dir("sizes/" + pattern(i*6+1)) }),
		Symlink("abs", "/etc/passwd"), Symlink("rel", "../one", Owner(7, 8)),
		Hardlink("a/b/linked", "blocks"), Hardlink("hard", "blocks"),
		Hardlink("a/hard-link-of-link", "abs"),
		Entries(33, func(i int) Entry { return Symlink("links/"+pattern(i+1), pattern(420+i)) }),
		Symlink("link-511", pattern(511)), Symlink("link-512", pattern(512)),
		Symlink("link-4095", pattern(4095)),
		Symlink("link-xattr", pattern(100), Xattr("trusted.big", pattern(400))),
		Node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)),
		Node("disk", unix.S_IFBLK|0o660, unix.Mkdev(4095, 1048575)),
		Node("fifo", unix.S_IFIFO|0o644, 0), Node("socket", unix.S_IFSOCK|0o755, 0),
		Node("whiteout", unix.S_IFCHR, 0), Dir("opaque", Xattr("trusted.overlay.opaque", "y")),
		File("caps", "c", Xattr("security.capability",
			"\x01\x00\x00\x02\x00\x20\x00\x00"+strings.Repeat("\x00", 12))),
		File("xattrs", pattern(3000), Xattr("user.a", ""), Xattr("user.b", "\x00\xff"),
			Xattr("trusted.t", "t"), Xattr("security.s", "s"),
			Xattr("user."+strings.Repeat("l", 250), "long")),
		File("big-xattrs", pattern(3000), Xattr("user.1", pattern(60<<10)),
			Xattr("user.2", pattern(65535)), Xattr("trusted.3", pattern(60<<10))),
		File("acl", "a", Xattr("system.posix_acl_access",
			"\x02\x00\x00\x00"+"\x01\x00\x06\x00\xff\xff\xff\xff"+"\x02\x00\x04\x00\x05\x00\x00\x00"+
				"\x04\x00\x04\x00\xff\xff\xff\xff"+"\x10\x00\x04\x00\xff\xff\xff\xff"+
				"\x20\x00\x04\x00\xff\xff\xff\xff")),
		Dir("dir-xattrs", Xattr("user.d", pattern(470))), File("dir-xattrs/f", "f"),
		Pieced("hole", 100000),
		Pieced("sparse", 40960+100, OnDevice(4096, pattern(4096)),
			OnDevice(12288, pattern(8192)), OnDevice(40960, pattern(100))),
		Pieced("sparse-512", 4096, OnDevice(512, pattern(512)), OnDevice(2048, pattern(1024))),
		Pieced("sparse-end", 70000, OnDevice(0, pattern(512))),
		Pieced("in-tree", 8192, OnDevice(0, pattern(1024)),
			InTree(1024, pattern(1024)), InTree(4096, pattern(4096))),
		Pieced("in-tree-tail", 1700, OnDevice(0, pattern(1024)), InTree(1024, pattern(676))),
		Pieced("in-tree-far", 200000, InTree(131072, pattern(68928))),
	)
}

// Wide is a layer of many files of a few KiB in directories of 100, on a device whose content is of
// no interest.
func Wide(files int) *Layer {
	random := rand.New(rand.NewPCG(1, 2))
	off := int64(0)
	l := LayerOf(Entries(files, func(i int) Entry {
		return func(l *Layer) {
			size := random.Int64N(20000) + 1
			n := &erofs.Node{Mode: unix.S_IFREG | 0o644, Size: size,
				Extents: []erofs.Extent{{Device: off + 512, Size: size}}}
			l.Put(fmt.Sprintf("usr/lib/package-%d/module_%d.py", i/100, i*7919%files), n,
				Mtime(1600000000+random.Int64N(1e7)/1000*1000, 0))
			off += 512 + wholeBlocks(size)
		}
	}))
	l.Finish(off)
	return l
}

// Small are seeds for a fuzzer: little of everything.
func Small() []*Layer {
	zeros := func(n int) string { return string(make([]byte, n)) }
	return []*Layer{
		LayerOf(),
		LayerOf(File("a/b", "content"), Hardlink("c", "a/b"), Implicit("d/e"),
			Symlink("s", "target"),
			Node("n", unix.S_IFCHR, 0)),
		LayerOf(File("x", "x", Xattr("user.n", "value"), Xattr("security.capability", "cap")),
			Dir("o", Xattr("trusted.overlay.opaque", "y"))),
		LayerOf(Pieced("p", 100000, OnDevice(4096, "device"+zeros(4090)),
			InTree(8192, zeros(512)))),
		LayerOf(Entries(60, func(i int) Entry { return File("many/"+string(rune('A'+i)), "") }),
			Symlink("l", strings.Repeat("l", 600))),
	}
}
