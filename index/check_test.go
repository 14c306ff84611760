package index

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// resign makes header and digests fit to a file that was changed: what a
// forger would do.
func resign(b []byte) []byte {
	le := binary.LittleEndian
	for i := range sectionDigests {
		at := b[sectionAt+i*sectionSize:]
		off, size := le.Uint64(at), le.Uint64(at[8:])
		if off <= uint64(len(b)) && size <= uint64(len(b))-off {
			sum := sha256.Sum256(b[off : off+size])
			copy(at[16:], sum[:])
		}
	}
	clear(b[16:20])
	le.PutUint32(b[16:], crc32.Checksum(b[:HeaderSize], castagnoli))
	return b
}

// forgery changes bytes of an index file; tree finds places in it.
type forgery func(b []byte, at func(path string) int64)

// field sets n bytes at offset off of a file's inode, or of what follows it.
func field(path string, off int64, value uint64, n int) forgery {
	return func(b []byte, at func(string) int64) {
		var v [8]byte
		binary.LittleEndian.PutUint64(v[:], value)
		copy(b[at(path)+off:], v[:n])
	}
}

func TestCheckForged(t *testing.T) {
	l := layerOf(
		file("a/file", strings.Repeat("f", 3000)), file("a/other", "o"), hardlink("a/second", "a/file"), file("empty", ""),
		symlink("link", "target"), symlink("long", strings.Repeat("l", 600)), dir("d/sub"), file("x", "x", xattr("user.n", "v")),
		entries(100, func(i int) entry { return file("many/"+strings.Repeat("n", i+1), "") }), node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)),
		node("fifo", unix.S_IFIFO, 0), pieced("tree", 1024, inTree(0, strings.Repeat("t", 1024))),
	)
	// Offsets in an inode: format 0, xattrs 2, mode 4, size 8, i_u 16, nlink 44;
	// an inline directory's entries begin at 64: nid 0, name offset 8, type 10.
	for name, f := range map[string]forgery{
		"compact format":             field("/a/file", 0, 8, 2),
		"compressed layout":          field("/a/file", 0, 3<<1|1, 2),
		"inline file":                field("/a/file", 0, layoutInline<<1|1, 2),
		"format bits":                field("/a/file", 0, 1<<7|layoutChunked<<1|1, 2),
		"bad type":                   field("/a/file", 4, 0o170644, 2),
		"other type":                 field("/a/file", 4, unix.S_IFCHR|0o644, 2),
		"reserved":                   field("/a/file", 48, 1, 1),
		"blocks high":                field("/a/file", 6, 1, 2),
		"negative size":              field("/a/file", 8, 1<<63, 8),
		"huge size":                  field("/a/file", 8, 1<<62, 8),
		"size beyond the device":     field("/a/other", 8, 1<<20, 8),
		"size that needs more table": field("/a/other", 8, 5<<30, 8),
		"chunk format":               field("/a/file", 16, 0x41, 2),
		"chunk bits":                 field("/a/file", 16, 0x20, 2),
		"no links":                   field("/a/file", 44, 0, 4),
		"links":                      field("/a/file", 44, 3, 4),
		"one link of two":            field("/a/file", 44, 1, 4),
		"links of one":               field("/a/other", 44, 2, 4),
		"nanoseconds":                field("/a/other", 40, 1e9, 4),
		"chunk device":               field("/a/file", 64+2, 2, 2),
		"chunk high bits":            field("/a/file", 64, 1, 2),
		"chunk outside":              field("/a/file", 64+4, 1<<20, 4),
		"chunk in the tree, outside": field("/tree", 64+4, 1<<20, 4),
		"chunk in the header":        field("/tree", 64+4, 0, 4),
		"hole with a device":         field("/a/file", 64+4, nullBlock, 4),
		"size of an empty file":      field("/empty", 8, 10, 8),
		"attributes behind the end":  field("/empty", 2, 0xffff, 2),
		"empty attributes":           field("/empty", 2, 1, 2),
		"attribute prefix":           field("/x", 64+12+1, 9, 1),
		"attribute size":             field("/x", 64+12+2, 900, 2),
		"attribute filter":           field("/x", 64, 1, 4),
		"shared attributes":          field("/x", 64+4, 1, 1),
		"attribute without name":     field("/x", 64+12, 0, 1),
		"target size":                field("/link", 8, 5000, 8),
		"empty target":               field("/link", 8, 0, 8),
		"target with NUL":            field("/link", 64, 0, 1),
		"target across blocks":       field("/link", 8, 500, 8),
		"target block":               field("/long", 16, 1<<30, 4),
		"target in the header":       field("/long", 16, 0, 4),
		"file as directory":          field("/a/other", 4, unix.S_IFDIR|0o755, 2),
		"directory as file":          field("/a", 4, unix.S_IFREG|0o755, 2),
		"directory links":            field("/a", 44, 7, 4),
		"empty directory":            field("/a", 8, 0, 8),
		"directory size":             field("/a", 8, 1<<40, 8),
		"directory block":            field("/many", 16, 1<<31, 4),
		"entry to itself":            func(b []byte, at func(string) int64) { putNid(b, at("/a")+64+2*12, at("/a")) },
		"cycle":                      func(b []byte, at func(string) int64) { putNid(b, at("/d")+64+2*12, 1568) },
		"entry of other type":        field("/a", 64+2*12+10, uint64(Symlink), 1),
		"entry without type":         field("/a", 64+2*12+10, 0, 1),
		"entry reserved":             field("/a", 64+2*12+11, 1, 1),
		"nid 0":                      field("/a", 64+2*12, 0, 8),
		"nid outside":                field("/a", 64+2*12, 1<<40, 8),
		"nid with high bit":          field("/a", 64+2*12+7, 0x80, 1),
		"wrong parent":               func(b []byte, at func(string) int64) { putNid(b, at("/d/sub")+64+12, at("/a")) },
		"wrong self":                 func(b []byte, at func(string) int64) { putNid(b, at("/d/sub")+64, at("/a")) },
		"count of entries":           field("/a", 64+8, 12*40, 2),
		"no entries":                 field("/a", 64+8, 0, 2),
		"entry name":                 field("/a", 64+12+8, 5*12, 2),
		"name with slash":            func(b []byte, at func(string) int64) { copy(b[at("/a")+64+5*12+3:], "/ile") },
		"order":                      func(b []byte, at func(string) int64) { copy(b[at("/a")+64+5*12+3:], "zile") },
		"same name":                  func(b []byte, at func(string) int64) { copy(b[at("/a")+64+5*12+3:], "fileothefiler") },
		"no dot":                     func(b []byte, at func(string) int64) { copy(b[at("/a")+64+5*12:], "-") },
		"count of inodes":            func(b []byte, _ func(string) int64) { b[superOffset+16]++ },
		"implicit": func(b []byte, at func(string) int64) {
			putNid(b, int64(binary.LittleEndian.Uint64(b[sectionAt+2*sectionSize:])), at("/empty"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := l.write(t)
			tree := openBytes(t, bytes.Clone(b)).Tree()
			f(b, func(p string) int64 { return (&Inode{Nid: lookupPath(t, tree, p)}).offset() })
			x, err := Open(bytes.NewReader(resign(b)), int64(len(b)))
			if err == nil {
				err = Check(context.Background(), x)
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("Check: %v", err)
			}
			if x != nil {
				readAll(x) // must end, and not panic
			}
		})
	}
}

func putNid(b []byte, at, inode int64) {
	binary.LittleEndian.PutUint64(b[at:], uint64(inode-metaOffset)/nidSize)
}

func lookupPath(t testing.TB, tree *Tree, p string) uint64 {
	t.Helper()
	nid := tree.Root()
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		var err error
		if nid, err = tree.Lookup(nid, name); err != nil {
			t.Fatal(err)
		}
	}
	return nid
}

// readAll reads all that an index has to say by every method, and returns how
// many of the calls were refused. It goes into each directory once.
func readAll(x *Layer) (refused int) {
	count := func(err error) {
		if err != nil {
			refused++
		}
	}
	tree := x.Tree()
	seen := map[uint64]bool{}
	var visit func(nid uint64, depth int)
	visit = func(nid uint64, depth int) {
		if seen[nid] || depth > 100 || len(seen) > 100000 {
			return
		}
		seen[nid] = true
		ino, err := tree.Inode(nid)
		count(err)
		names, err := tree.ListXattrs(nid)
		count(err)
		for _, name := range names {
			_, err := tree.Xattr(nid, name)
			count(err)
		}
		switch ino.Type() {
		case Symlink:
			_, err := tree.Readlink(nid)
			count(err)
		case Regular:
			count(tree.Extents(ino, 0, 1<<20, func(Extent) error { return nil }))
			count(tree.Extents(ino, max(ino.Size-1, 0), 10, func(Extent) error { return nil }))
		case Directory:
			var children []Dirent
			count(tree.ReadDir(nid, 0, func(e Dirent) bool { children = append(children, e); return len(children) < 10000 }))
			for _, e := range children {
				found, err := tree.Lookup(nid, e.Name)
				if err != nil || found != e.Nid {
					refused++
				}
				visit(e.Nid, depth+1)
			}
			count(tree.Paths([]uint64{nid}, func(uint64, string) error { return nil }))
		}
	}
	visit(tree.Root(), 0)
	_, err := x.Spans()
	count(err)
	implicit, err := x.Implicit()
	count(err)
	count(tree.Paths(implicit, func(uint64, string) error { return nil }))
	return refused
}

// TestCheckedIsSane: a tree with damage that Check accepts is read without an
// error, by Tree and by the kernel.
func TestCheckedIsSane(t *testing.T) {
	l := layerOf(
		file("a/file", strings.Repeat("f", 3000)), hardlink("a/second", "a/file"), file("empty", ""), dir("d/sub"),
		symlink("link", "target"), symlink("long", strings.Repeat("l", 600)), file("x", "x", xattr("user.n", "v"), xattr("trusted.m", "w")),
		entries(30, func(i int) entry { return file("many/"+strings.Repeat("n", i+1), "content") }),
		node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), pieced("tree", 2048, inTree(0, strings.Repeat("t", 1024))),
	)
	sound := l.write(t)
	_, device := l.files(t)
	meta := int64(binary.LittleEndian.Uint64(sound[sectionAt+8:])) + HeaderSize
	random, accepted := rand.New(rand.NewPCG(1, 2)), 0
	for i := range 3000 {
		b := bytes.Clone(sound)
		for range 1 + random.IntN(3) {
			b[metaOffset+random.Int64N(meta-metaOffset)] ^= 1 << random.IntN(8)
		}
		x, err := Open(bytes.NewReader(resign(b)), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if Check(context.Background(), x) != nil {
			readAll(x)
			continue
		}
		if n := readAll(x); n != 0 {
			t.Errorf("mutation %d: Check accepts it, %d reads fail", i, n)
		}
		if accepted++; accepted%20 == 0 {
			kernelReads(t, b, device)
		}
	}
	if accepted < 200 {
		t.Errorf("only %d mutations were accepted: too few to say anything", accepted)
	}
}

// kernelReads mounts an index and reads all that it has.
func kernelReads(t *testing.T, index []byte, device string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "index")
	if err := os.WriteFile(name, index, 0o600); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	err := filepath.WalkDir(mountTree(t, name, device), func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if _, err := unix.Llistxattr(p, buf); err != nil {
			return err
		}
		switch d.Type() {
		case 0:
			_, err = os.ReadFile(p)
		case os.ModeSymlink:
			_, err = os.Readlink(p)
		}
		return err
	})
	if err != nil {
		t.Errorf("Check accepts it, the kernel does not: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	good := nasty().write(t)
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		forge func(b []byte) []byte
		want  string
	}{
		"short":            {func(b []byte) []byte { return b[:1000] }, "corrupt"},
		"cut":              {func(b []byte) []byte { return b[:len(b)-1] }, "the file has"},
		"longer":           {func(b []byte) []byte { return append(b, 0) }, "the file has"},
		"magic":            {func(b []byte) []byte { b[0]++; return resign(b) }, "not an index file"},
		"newer":            {func(b []byte) []byte { le.PutUint32(b[8:], 7); return b }, "index version 7 is newer than this mica understands (1): upgrade mica"},
		"bit":              {func(b []byte) []byte { b[180] ^= 1; return b }, "header checksum"},
		"flags":            {func(b []byte) []byte { b[12] = 1; return resign(b) }, "reserved"},
		"reserved":         {func(b []byte) []byte { b[1000] = 1; return resign(b) }, "reserved"},
		"digest":           {func(b []byte) []byte { b[32] = 9; return resign(b) }, "digest algorithm"},
		"device size":      {func(b []byte) []byte { le.PutUint64(b[184:], 1<<60); return resign(b) }, "addresses at most"},
		"sections":         {func(b []byte) []byte { le.PutUint64(b[sectionAt+sectionSize:], 1<<60); return resign(b) }, "section 1"},
		"section size":     {func(b []byte) []byte { le.PutUint64(b[sectionAt+8:], 1<<63); return resign(b) }, "section 0"},
		"superblock":       {func(b []byte) []byte { b[superOffset+80] ^= 2; return resign(b) }, "superblock"},
		"root nid":         {func(b []byte) []byte { b[superOffset+14]++; return resign(b) }, "superblock"},
		"size of device":   {func(b []byte) []byte { b[slotOffset+64]++; return resign(b) }, "superblock"},
		"content digests":  {func(b []byte) []byte { b[sectionAt+3*sectionSize]++; return resign(b) }, "content digests"},
		"negative windows": {func(b []byte) []byte { le.PutUint64(b[192:], 1<<63); return resign(b) }, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.forge(bytes.Clone(good))
			if _, err := Open(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// TestVerify: a bit that turns anywhere in the file is found.
func TestVerify(t *testing.T) {
	good := layerOf(file("a", "content"), implicit("b/c")).write(t)
	for at := range good {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		x, err := Open(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			err = x.Verify(context.Background())
		}
		if err == nil {
			t.Fatalf("byte %d changed, nobody noticed", at)
		}
	}
}

func TestSpansRefused(t *testing.T) {
	good := layerOf(file("a", strings.Repeat("x", 10000)))
	for name, forge := range map[string]func(s []Span){
		"gap":           func(s []Span) { s[1].Device += 512 },
		"order":         func(s []Span) { s[0], s[1] = s[1], s[0] },
		"empty":         func(s []Span) { s[0].Size = 0 },
		"too large":     func(s []Span) { s[0].Size = MaxSpanSize + 1 },
		"blob":          func(s []Span) { s[1].Blob = 1 << 40 },
		"negative blob": func(s []Span) { s[0].Blob = -1 },
		"blob order":    func(s []Span) { s[2].Blob = 0 },
		"blob size":     func(s []Span) { s[0].BlobSize = 0 },
		"codec":         func(s []Span) { s[0].Codec = 200 },
		"stored size":   func(s []Span) { s[0].BlobSize-- },
		"bit":           func(s []Span) { s[0].Bit = 8 },
		"stored bit":    func(s []Span) { s[0].Bit = 1 },
		"window":        func(s []Span) { s[0].Codec = Deflate; s[0].Window = Range{90, 11} },
		"window size":   func(s []Span) { s[0].Codec = Deflate; s[0].Window = Range{0, MaxWindowSize + 1} },
		"stored window": func(s []Span) { s[0].Window = Range{0, 1} },
		"short":         func(s []Span) { s[len(s)-1].Size -= 512; s[len(s)-1].BlobSize -= 512 },
	} {
		t.Run(name, func(t *testing.T) {
			d := good.draft
			d.Spans = append([]Span{}, d.Spans...)
			forge(d.Spans)
			if _, err := Write(new(bytes.Buffer), &d); err == nil {
				t.Error("Write takes it")
			}
			b := good.write(t)
			off := binary.LittleEndian.Uint64(b[sectionAt+sectionSize:])
			var table []byte
			for i := range d.Spans {
				table = d.Spans[i].append(table)
			}
			copy(b[off:], table)
			if _, err := openBytes(t, resign(b)).Spans(); !errors.Is(err, ErrCorrupt) {
				t.Errorf("Spans: %v", err)
			}
		})
	}
}
