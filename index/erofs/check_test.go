package erofs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

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
	l := LayerOf(
		File("a/file", strings.Repeat("f", 3000)), File("a/other", "o"), Hardlink("a/second",
			"a/file"), File("empty", ""),
		Symlink("link", "target"), Symlink("long",
			strings.Repeat("l", 600)), Dir("d/sub"), File("x", "x", Xattr("user.n", "v")),
		Entries(100, func(i int) Entry {
			return File("many/"+strings.Repeat("n", i+1),
				"")
		}), Node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)),
		Node("fifo", unix.S_IFIFO, 0), Pieced("tree", 1024, InTree(0, strings.Repeat("t", 1024))),
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
		"entry to itself": func(b []byte,
			at func(string) int64) {
			putNid(b, at("/a")+64+2*12, at("/a"))
		},
		"cycle": func(b []byte,
			at func(string) int64) {
			putNid(b, at("/d")+64+2*12, 1568)
		},
		"entry of other type": field("/a", 64+2*12+10, uint64(erofs.Symlink), 1),
		"entry without type":  field("/a", 64+2*12+10, 0, 1),
		"entry reserved":      field("/a", 64+2*12+11, 1, 1),
		"nid 0":               field("/a", 64+2*12, 0, 8),
		"nid outside":         field("/a", 64+2*12, 1<<40, 8),
		"nid with high bit":   field("/a", 64+2*12+7, 0x80, 1),
		"wrong parent": func(b []byte,
			at func(string) int64) {
			putNid(b, at("/d/sub")+64+12, at("/a"))
		},
		"wrong self": func(b []byte,
			at func(string) int64) {
			putNid(b, at("/d/sub")+64, at("/a"))
		},
		"count of entries": field("/a", 64+8, 12*40, 2),
		"no entries":       field("/a", 64+8, 0, 2),
		"entry name":       field("/a", 64+12+8, 5*12, 2),
		"name with slash": func(b []byte,
			at func(string) int64) {
			copy(b[at("/a")+64+5*12+3:], "/ile")
		},
		"order": func(b []byte,
			at func(string) int64) {
			copy(b[at("/a")+64+5*12+3:], "zile")
		},
		"same name": func(b []byte,
			at func(string) int64) {
			copy(b[at("/a")+64+5*12+3:], "fileothefiler")
		},
		"no dot": func(b []byte,
			at func(string) int64) {
			copy(b[at("/a")+64+5*12:], "-")
		},
		"count of inodes": func(b []byte, _ func(string) int64) { b[superOffset+16]++ },
		"implicit": func(b []byte, at func(string) int64) {
			putNid(b, int64(binary.LittleEndian.Uint64(b[SectionAt+2*SectionSize:])), at("/empty"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := l.Write(t)
			tree := OpenBytes(t, bytes.Clone(b)).Tree()
			f(b, func(p string) int64 { return metaOffset + int64(LookupPath(t, tree, p))*nidSize })
			x, err := index.Open(bytes.NewReader(Resign(b)), int64(len(b)))
			if err == nil {
				err = index.Check(context.Background(), x)
			}
			if !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("Check: %v", err)
			}
			if x != nil {
				ReadAll(x) // must end, and not panic
			}
		})
	}
}

func putNid(b []byte, at, inode int64) {
	binary.LittleEndian.PutUint64(b[at:], uint64(inode-metaOffset)/nidSize)
}

// TestCheckedIsSane: a tree with damage that Check accepts is read without an
// error, by Tree and by the kernel.
func TestCheckedIsSane(t *testing.T) {
	l := LayerOf(
		File("a/file", strings.Repeat("f", 3000)), Hardlink("a/second", "a/file"), File("empty",
			""), Dir("d/sub"),
		Symlink("link", "target"), Symlink("long", strings.Repeat("l", 600)), File("x", "x",
			Xattr("user.n", "v"), Xattr("trusted.m", "w")),
		Entries(30, func(i int) Entry { return File("many/"+strings.Repeat("n", i+1), "content") }),
		Node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), Pieced("tree", 2048,
			InTree(0, strings.Repeat("t", 1024))),
	)
	sound := l.Write(t)
	_, device := l.Files(t)
	meta := int64(binary.LittleEndian.Uint64(sound[SectionAt+8:])) + index.HeaderSize
	random, accepted := rand.New(rand.NewPCG(1, 2)), 0
	for i := range 3000 {
		b := bytes.Clone(sound)
		for range 1 + random.IntN(3) {
			b[metaOffset+random.Int64N(meta-metaOffset)] ^= 1 << random.IntN(8)
		}
		x, err := index.Open(bytes.NewReader(Resign(b)), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if index.Check(context.Background(), x) != nil {
			ReadAll(x)
			continue
		}
		if n := ReadAll(x); n != 0 {
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
func kernelReads(t *testing.T, file []byte, device string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "index")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	err := filepath.WalkDir(mountTree(t, name, device),
		func(p string, d os.DirEntry, err error) error {
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
