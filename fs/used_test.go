package fs

import (
	"testing"

	"github.com/mica-snapshotter/mica/fs/fetch"
)

// TestRemovedIsNotCounted: what a removed layer took counts no more, however far it had come, and
// however often it comes and goes.
func TestRemovedIsNotCounted(t *testing.T) {
	const files, size = 16, 128 << 10
	blob, lines := manyFiles(t, 21, files, size)
	w := newWorld(t, blob)
	w.index(nil)
	root := testDir(t)
	table := w.openWith(Options{Root: root, Mode: EROFS, Fetch: fetch.Options{Fill: fetch.None},
		Cache: CacheOptions{Size: 4 * files * size}})
	empty := table.Cache().Used
	for round := range 3 {
		dir := w.mountAll(table)[0]
		if round > 0 {
			mustList(t, dir, lines)
		}
		if used := table.Cache().Used - empty; round > 0 && used < files*size {
			t.Errorf("round %d: %d bytes of %d are counted", round, used, files*size)
		}
		if err := table.Remove(t.Context(), w.layers[0]); err != nil {
			t.Fatal(err)
		}
		if c := table.Cache(); c.Used != empty || c.Full {
			t.Errorf("round %d: %d bytes are counted, %d are on disk", round, c.Used, usedBy(t, root+"/layers"))
		}
	}
}
