package tartree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest/nastytar"
)

func TestLimits(t *testing.T) {
	names := make([]nastytar.Entry, 100)
	for i := range names {
		names[i] = nastytar.File(fmt.Sprintf("file-%03d", i), "")
	}
	links := []nastytar.Entry{nastytar.Dir("end")}
	for i := range 100 {
		links = append(links, nastytar.Symlink(fmt.Sprint("s", i),
			map[bool]string{true: "end", false: fmt.Sprint("s", i-1)}[i == 0]))
	}
	xattrs := nastytar.Of(nastytar.Dir("d", nastytar.Xattr("user.a", strings.Repeat("a", 500))),
		nastytar.Dir("d", nastytar.Xattr("user.b", strings.Repeat("b", 500))))
	odd := nastytar.Sparse10("f", 1<<20, nastytar.Piece{Off: 1, Data: strings.Repeat("o", 5000)})
	for _, c := range []struct {
		field string
		data  []byte
		ok    tartree.Limits
		over  tartree.Limits
	}{
		{"Entries", nastytar.Of(names...), tartree.Limits{Entries: 100},
			tartree.Limits{Entries: 99}},
		{"Entries", nastytar.Of(nastytar.File("a/b/c/d/e", "")), tartree.Limits{Entries: 5},
			tartree.Limits{Entries: 4}},
		{"NameBytes", nastytar.Of(names...), tartree.Limits{NameBytes: 800},
			tartree.Limits{NameBytes: 799}},
		{"NameBytes", nastytar.Of(nastytar.Symlink("s", "12345")), tartree.Limits{NameBytes: 6},
			tartree.Limits{NameBytes: 5}},
		{"XattrBytes", xattrs, tartree.Limits{XattrBytes: 1012}, tartree.Limits{XattrBytes: 1011}},
		{"NameBytes", xattrs, tartree.Limits{}, tartree.Limits{NameBytes: 1000}},
		{"TreeBytes", nastytar.Of(odd), tartree.Limits{TreeBytes: 5120},
			tartree.Limits{TreeBytes: 5119}},
		{"Extents", nastytar.Of(nastytar.Sparse01("f", 10000, nastytar.Piece{Off: 0, Data: "a"},
			nastytar.Piece{Off: 9000, Data: "b"})),
			tartree.Limits{Extents: 2}, tartree.Limits{Extents: 1}},
		{"FileSize", nastytar.Of(nastytar.Sparse10("f", 1<<30)), tartree.Limits{FileSize: 1 << 30},
			tartree.Limits{FileSize: 1<<30 - 1}},
		{"Steps", nastytar.Of(append(links, nastytar.File("s99/f", "x"))...),
			tartree.Limits{Steps: 300}, tartree.Limits{Steps: 100}},
	} {
		if _, err := tartree.Scan(bytes.NewReader(c.data), c.ok); err != nil {
			t.Errorf("%s: %+v: %v", c.field, c.ok, err)
		}
		_, err := tartree.Scan(bytes.NewReader(c.data), c.over)
		if !errors.Is(err, tartree.ErrLimit) || !strings.Contains(err.Error(), "Limits."+c.field) {
			t.Errorf("%s: %+v: error %v", c.field, c.over, err)
		}
	}
}

func TestErrors(t *testing.T) {
	torn := errors.New("the wire is torn")
	whole := nastytar.Of(nastytar.File("dir/file", strings.Repeat("x", 5000)),
		nastytar.File("next", ""))
	for name, c := range map[string]struct {
		in   io.Reader
		want error
		says string
	}{
		"cut in the data": {bytes.NewReader(whole[:2000]), io.ErrUnexpectedEOF, `"dir/file"`},
		"cut in a header": {bytes.NewReader(whole[:5900]), io.ErrUnexpectedEOF, `"dir/file"`},
		"error in the data": {io.MultiReader(bytes.NewReader(whole[:2000]), iotest.ErrReader(torn)),
			torn, `"dir/file"`},
		"error in a header": {iotest.ErrReader(torn), torn, ""},
		"no tar": {strings.NewReader(strings.Repeat("x", 1024)), tar.ErrHeader,
			"offset 512"},
		"not a directory": {bytes.NewReader(nastytar.Of(nastytar.File("f", ""),
			nastytar.File("f/g", ""))), unix.ENOTDIR, `"f/g"`},
		"whiteout of a file": {bytes.NewReader(nastytar.Of(nastytar.File("f", ""),
			nastytar.File(".wh.f", ""))),
			unix.EEXIST, `".wh.f"`},
		"missing target": {bytes.NewReader(nastytar.Of(nastytar.Link("f", "gone"))), unix.ENOENT,
			`"gone"`},
	} {
		root, err := tartree.Scan(c.in, tartree.Limits{})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want %v with %s", name, err, c.want, c.says)
		}
		if root != nil {
			t.Errorf("%s: a tree beside the error", name)
		}
	}
}

// TestReadsToTheEndMarker checks that what follows the tar stays in the reader,
// whatever the size of the reads.
func TestReadsToTheEndMarker(t *testing.T) {
	marker := make([]byte, 1024)
	for _, c := range nastytar.Accepted() {
		if !bytes.HasSuffix(c.Data, marker) || c.Name == "two-tars" {
			continue
		}
		for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader} {
			in := bytes.NewReader(append(bytes.Clone(c.Data), "behind"...))
			if _, err := tartree.Scan(wrap(in), tartree.Limits{}); err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
			if rest, _ := io.ReadAll(in); string(rest) != "behind" {
				t.Errorf("%s: %d bytes left", c.Name, len(rest))
			}
		}
	}
}

// TestHugeHole scans a file of 300 GB that is all hole but for two pieces.
func TestHugeHole(t *testing.T) {
	const size = 300 << 30
	for name, f := range map[string]func(string, int64, ...nastytar.Piece) nastytar.Entry{
		"0.0": nastytar.Sparse00, "0.1": nastytar.Sparse01, "1.0": nastytar.Sparse10,
	} {
		start := time.Now()
		s := scan(t, nastytar.Of(f("f", size,
			nastytar.Piece{Off: 0, Data: strings.Repeat("x", 512)},
			nastytar.Piece{Off: size - 1024, Data: strings.Repeat("y", 1024)})))
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: took %v", name, d)
		}
		n := s.root.Children["f"]
		if n.Size != size || len(n.Extents) != 2 || n.Extents[1].File != size-1024 ||
			n.Extents[1].Data != nil {
			t.Errorf("%s: size %d, %d extents", name, n.Size, len(n.Extents))
		}
	}
}

// TestMemory scans 100,000 files and looks at what the tree keeps.
func TestMemory(t *testing.T) {
	const files = 100_000
	in := manyFiles(files)
	before := heap()
	root, err := tartree.Scan(in, tartree.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	perFile := (heap() - before) / files
	t.Logf("%d bytes a file", perFile)
	if perFile > 450 {
		t.Errorf("%d bytes a file", perFile)
	}
	runtime.KeepAlive(root)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// manyFiles streams a tar of n files of 100 bytes, 100 in each directory.
func manyFiles(n int) io.Reader {
	r, w := io.Pipe()
	go func() { // ends with the tar, or when nobody reads
		tw := tar.NewWriter(w)
		for i := range n {
			name := fmt.Sprintf("usr/lib/package-%06d/file-%06d.txt", i/100, i)
			if tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 100,
				Mode: 0o644}) != nil {
				return
			}
			if _, err := tw.Write(make([]byte, 100)); err != nil {
				return
			}
		}
		w.CloseWithError(tw.Close())
	}()
	return r
}

// TestGiantPAXRecord checks that a small part of a large header does not keep all of
// it in memory.
func TestGiantPAXRecord(t *testing.T) {
	comment := strings.Repeat("c", 1<<19)
	var entries []nastytar.Entry
	for i := range 100 {
		entries = append(entries, nastytar.PAX("comment", comment, "SCHILY.xattr.user.a", "1",
			"linkpath", "target"),
			nastytar.Raw{Name: fmt.Sprint("s", i), Type: '2', Magic: "ustar\x0000"}.Entry)
	}
	data := nastytar.Of(entries...)
	before := heap()
	s := scan(t, data)
	if grown := int64(heap()) - int64(before); grown > 10<<20 {
		t.Errorf("%d entries keep %d bytes", len(entries), grown)
	}
	if len(s.root.Children) != 100 {
		t.Errorf("%d entries", len(s.root.Children))
	}
	runtime.KeepAlive(s)
}

// TestManyXattrs scans inodes with as many xattrs as fit: their sum is not counted again for each,
// and xattrs without a value are no way around the limits.
func TestManyXattrs(t *testing.T) {
	const perFile = 12_000
	var records []string
	for i := range perFile {
		records = append(records, fmt.Sprintf("SCHILY.xattr.user.%04x", i), "")
	}
	var entries []nastytar.Entry
	for i := range 10 {
		entries = append(entries, nastytar.PAX(records...),
			nastytar.Raw{Name: fmt.Sprint("f", i), Type: '0', Magic: "ustar\x0000"}.Entry)
	}
	data := nastytar.Of(entries...)
	start := time.Now()
	s := scan(t, data)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("%d xattrs took %v", perFile*len(entries)/2, d)
	}
	if n := len(s.root.Children["f9"].Xattrs); n != perFile {
		t.Errorf("%d xattrs, want %d", n, perFile)
	}
	const names = 5 * perFile * 48
	if _, err := tartree.Scan(bytes.NewReader(data),
		tartree.Limits{NameBytes: names}); !errors.Is(err, tartree.ErrLimit) {
		t.Errorf("%d xattrs with room for %d bytes: error %v", 10*perFile, names, err)
	}
}

// TestDeepPaths scans entries whose paths are as deep as paths can be, each in directories of its
// own.
func TestDeepPaths(t *testing.T) {
	var entries []nastytar.Entry
	for i := range 50 {
		entries = append(entries, nastytar.File(fmt.Sprintf("%d/%s", i,
			strings.Repeat("d/", 2000)+"f"), "x"))
	}
	data := nastytar.Of(entries...)
	start := time.Now()
	if _, err := tartree.Scan(bytes.NewReader(data), tartree.Limits{}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	if _, err := tartree.Scan(bytes.NewReader(data),
		tartree.Limits{Entries: 50 * 2000}); !errors.Is(err, tartree.ErrLimit) {
		t.Errorf("implied directories are not counted: %v", err)
	}
	tooDeep := nastytar.Of(nastytar.File(strings.Repeat("d/", 2048)+"f", "x"))
	if _, err := tartree.Scan(bytes.NewReader(tooDeep), tartree.Limits{}); !errors.Is(err,
		unix.ENAMETOOLONG) {
		t.Errorf("a path longer than paths can be: %v", err)
	}
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// TestTenMillionEntries scans a tar of ten million entries: it is given up at the limit, and not
// read further.
func TestTenMillionEntries(t *testing.T) {
	const limit = 50_000
	r, w := io.Pipe()
	go func() {
		var entry bytes.Buffer
		nastytar.Link("l", "file")(&entry)
		_, err := w.Write(nastytar.Unended(nastytar.File("file", "x")))
		for i := 0; i < 10_000_000 && err == nil; i++ {
			_, err = w.Write(entry.Bytes())
		}
		w.CloseWithError(io.EOF)
	}()
	defer r.Close() // ends the writer
	in := &counter{r: r}
	if _, err := tartree.Scan(in, tartree.Limits{Entries: limit}); !errors.Is(err,
		tartree.ErrLimit) {
		t.Errorf("error %v", err)
	}
	if in.n > (limit+10)*1024 {
		t.Errorf("%d bytes were read for %d entries", in.n, limit)
	}
}
