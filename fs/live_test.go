package fs

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/store"
)

// stalled returns the first layer of an image, of which nothing comes until release is called.
func stalled(t *testing.T) (v *live, release func()) {
	t.Helper()
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	come := make(chan struct{})
	gate := func(path string) {
		if strings.HasSuffix(path, w.layers[0].String()) {
			<-come
		}
	}
	w.gate.Store(&gate)
	table := w.openWith(Options{Root: testDir(t), Mode: EROFS, Fetch: fetch.Options{Fill: fetch.All}})
	release = sync.OnceFunc(func() { close(come) })
	t.Cleanup(release) // before the table is closed
	w.mountAll(table)
	v, err := table.stored(Layer{Digest: w.layers[0]})
	if err != nil {
		t.Fatal(err)
	}
	return v, release
}

// TestLostBeforeCheck: what the store loses of a layer that has come whole, before it is checked, comes again.
func TestLostBeforeCheck(t *testing.T) {
	v, release := stalled(t)
	func() {
		v.trust.proving.Lock() // nothing is checked
		defer v.trust.proving.Unlock()
		release()
		eventually(t, "all has come", v.store.AllPresent)
		if n, err := v.data.Evict([]int{0}); n == 0 || err != nil {
			t.Fatalf("%d bytes are lost: %v", n, err)
		}
	}()
	eventually(t, "the layer is whole and checked", func() bool { return v.store.Record().State == store.Verified })
}

// TestFolderGoneBeforeFill: a layer comes whole, though somebody took its folder away before anything of it had come.
func TestFolderGoneBeforeFill(t *testing.T) {
	v, release := stalled(t)
	if n, _ := v.store.Count(); n > 0 {
		t.Fatalf("%d spans have come", n)
	}
	away := filepath.Join(testDir(t), "away")
	if err := os.Rename(v.store.Dir(), away); err != nil {
		t.Fatal(err)
	}
	defer func() { // closing the table saves it
		if err := os.Rename(away, v.store.Dir()); err != nil {
			t.Error(err)
		}
	}()
	release()
	eventually(t, "all has come", v.store.AllPresent)
}
