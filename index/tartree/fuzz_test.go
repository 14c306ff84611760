package tartree_test

import (
	"bytes"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/tartree"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest"
	"github.com/mica-snapshotter/mica/index/tartree/tartreetest/nastytar"
)

// FuzzScan checks that no stream makes Scan panic or return what is not a tree, and
// that all files can be read and have the digest that they claim.
func FuzzScan(f *testing.F) {
	for _, c := range nastytar.All() {
		if len(c.Data) < 64<<10 {
			f.Add(c.Data)
		}
	}
	for seed := range uint64(50) {
		f.Add(nastytar.Random(seed))
	}
	const largestRead = 1 << 20
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := tartree.Scan(bytes.NewReader(data),
			tartree.Limits{Entries: 10_000, TreeBytes: 1 << 20, Steps: 1 << 16})
		if err != nil {
			return
		}
		checkTree(t, root, int64(len(data)))
		var visit func(n *erofs.Node)
		visit = func(n *erofs.Node) {
			for _, child := range n.Children {
				visit(child)
			}
			if n.Mode&unix.S_IFMT != unix.S_IFREG || n.Size > largestRead {
				return
			}
			content, err := io.ReadAll(tartreetest.NewReader(n, bytes.NewReader(data)))
			if err != nil || int64(len(content)) != n.Size {
				t.Fatalf("file of %d bytes: read %d, %v", n.Size, len(content), err)
			}
		}
		visit(root)
	})
}
