package tartree_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest/nastytar"
)

// TestSameAsContainerd unpacks every nasty tar with containerd and compares the
// directory with the tree, or the refusal with the error.
func TestSameAsContainerd(t *testing.T) {
	for _, c := range nastytar.All() {
		t.Run(c.Name, func(t *testing.T) {
			refusal := compare(t, c.Data, c.Extra)
			if refused := refusal != nil; refused != c.Refused {
				t.Errorf("containerd: %v, want refused: %v", refusal, c.Refused)
			}
		})
	}
}

// TestSameAsContainerdRandom does so with random tars.
func TestSameAsContainerdRandom(t *testing.T) {
	accepted := 0
	const first, tars = 0, 1000
	for seed := range uint64(tars) {
		if compare(t, nastytar.Random(first+seed), false) == nil {
			accepted++
		}
		if t.Failed() {
			t.Fatalf("seed %d", first+seed)
		}
	}
	t.Logf("%d of %d tars accepted", accepted, tars)
	if accepted < tars/10 {
		t.Errorf("only %d of %d tars accepted", accepted, tars)
	}
}

// compare unpacks and scans a tar and compares the two, and returns why containerd
// refused it, if it did. Extra: Scan does not refuse it.
func compare(t *testing.T, data []byte, extra bool) (refusal error) {
	t.Helper()
	dir, start := t.TempDir(), time.Now()
	refusal = tartreetest.Unpack(t.Context(), bytes.NewReader(data), dir)
	root, err := tartree.Scan(bytes.NewReader(data), tartree.Limits{})
	switch {
	case refusal != nil && !extra:
		if err == nil {
			t.Errorf("no error; containerd says: %v", refusal)
		}
		return refusal
	case err != nil:
		t.Error(err)
		return refusal
	}
	checkTree(t, root, int64(len(data)))
	if refusal != nil {
		return refusal
	}
	want, err := tartreetest.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	want.UnpackedSince(start)
	got, err := tartreetest.Nodes(root, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range tartreetest.Diff(want, got) {
		t.Error(d)
	}
	return nil
}

// checkTree checks what every tree must hold, whatever the tar.
func checkTree(t *testing.T, root *erofs.Node, deviceSize int64) {
	t.Helper()
	seen := map[*erofs.Node]bool{}
	var visit func(path string, n *erofs.Node)
	visit = func(path string, n *erofs.Node) {
		if n == nil {
			t.Fatalf("%q has no node", path)
		}
		isDir := n.Mode&unix.S_IFMT == unix.S_IFDIR
		if seen[n] {
			if isDir {
				t.Fatalf("directory %q is in the tree twice", path)
			}
			return
		}
		seen[n] = true
		if !isDir && n.Children != nil {
			t.Fatalf("%q has children and is no directory", path)
		}
		if n.Mode&unix.S_IFMT == unix.S_IFLNK && n.Target == "" {
			t.Fatalf("%q has no target", path)
		}
		checkExtents(t, path, n, deviceSize)
		for name, child := range n.Children {
			if name == "" || name == "." || name == ".." || len(name) > 255 ||
				strings.ContainsAny(name, "/\x00") {
				t.Fatalf("bad name %q in %q", name, path)
			}
			visit(path+"/"+name, child)
		}
	}
	visit("", root)
	if root.Mode != unix.S_IFDIR|0o755 {
		t.Fatalf("root has mode %o", root.Mode)
	}
}

func checkExtents(t *testing.T, path string, n *erofs.Node, deviceSize int64) {
	t.Helper()
	if n.Mode&unix.S_IFMT != unix.S_IFREG && (n.Size != 0 || n.Extents != nil) {
		t.Fatalf("%q has content and is no file", path)
	}
	at := int64(0)
	for _, e := range n.Extents {
		end := e.File + e.Size
		switch {
		case e.Size <= 0 || e.File < at || end > n.Size || end < e.File:
			t.Fatalf("%q of %d bytes: extent of %d at %d, behind %d", path, n.Size, e.Size, e.File,
				at)
		case e.File%erofs.BlockSize != 0 || end%erofs.BlockSize != 0 && end != n.Size:
			t.Fatalf("%q of %d bytes: extent of %d at %d is not of blocks", path, n.Size, e.Size,
				e.File)
		case e.Data != nil && int64(len(e.Data)) != e.Size:
			t.Fatalf("%q: extent of %d with %d bytes", path, e.Size, len(e.Data))
		case e.Data == nil && (e.Device%erofs.BlockSize != 0 || e.Device < 0 ||
			e.Device+e.Size > deviceSize):
			t.Fatalf("%q: extent of %d at %d in the device of %d", path, e.Size, e.Device,
				deviceSize)
		}
		at = end
	}
}

// TestOldSparse reads what containerd refuses, so that the content is known
// only from the pieces.
func TestOldSparse(t *testing.T) {
	pieces := []nastytar.Piece{{Off: 100, Data: "abc"},
		{Off: 1024, Data: strings.Repeat("d", 1536)}}
	for i := range 40 {
		pieces = append(pieces, nastytar.Piece{Off: int64(i+2) * 4096,
			Data: strings.Repeat(string(rune('A'+i)), 512)})
	}
	want := make([]byte, 200_000)
	for _, p := range pieces {
		copy(want[p.Off:], p.Data)
	}
	old := scan(t, nastytar.Of(nastytar.SparseOld("f", 200_000, pieces...)))
	if got := read(t, old, "f"); !bytes.Equal(got, want) {
		t.Fatal("wrong content")
	}
}

type scanned struct {
	data []byte
	root *erofs.Node
}

func scan(t testing.TB, data []byte) scanned {
	t.Helper()
	root, err := tartree.Scan(bytes.NewReader(data), tartree.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return scanned{data, root}
}

func read(t testing.TB, s scanned, name string) []byte {
	t.Helper()
	b, err := io.ReadAll(tartreetest.NewReader(s.root.Children[name], bytes.NewReader(s.data)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKept: the files that a runtime reads of every image are in the tree as well, if they are not
// large.
func TestKept(t *testing.T) {
	users, large := "root:x:0:0::/:\n"+strings.Repeat("#", 1000), strings.Repeat("x",
		tartree.KeptSize+1)
	for name, c := range map[string]struct {
		tar  []byte
		path []string
		want string // kept; "": nothing
	}{
		"passwd": {nastytar.Of(nastytar.File("etc/passwd", users)),
			[]string{"etc", "passwd"}, users},
		"group": {nastytar.Of(nastytar.File("./etc/group", users)),
			[]string{"etc", "group"}, users},
		"the last one": {nastytar.Of(nastytar.File("etc/passwd", large),
			nastytar.File("etc/passwd", users)), []string{"etc", "passwd"}, users},
		"as large as it is": {nastytar.Of(nastytar.File("etc/passwd", large[1:])),
			[]string{"etc", "passwd"}, large[1:]},
		"too large": {nastytar.Of(nastytar.File("etc/passwd", large)),
			[]string{"etc", "passwd"}, ""},
		"empty": {nastytar.Of(nastytar.File("etc/passwd", "")),
			[]string{"etc", "passwd"}, ""},
		"another file": {nastytar.Of(nastytar.File("etc/shadow", users)),
			[]string{"etc", "shadow"}, ""},
		"elsewhere": {nastytar.Of(nastytar.File("usr/etc/passwd", users)),
			[]string{"usr", "etc", "passwd"}, ""},
	} {
		n := scan(t, c.tar).root
		for _, p := range c.path {
			n = n.Children[p]
		}
		kept := ""
		if len(n.Extents) > 0 {
			kept = string(n.Extents[0].Data)
			if at := n.Extents[0].Device; !bytes.HasPrefix(c.tar[at:], []byte(kept)) {
				t.Errorf("%s: device %d has something else", name, at)
			}
		}
		if kept != c.want {
			t.Errorf("%s: %.50q is kept, want %.50q", name, kept, c.want)
		}
	}
}
