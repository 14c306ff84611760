package fs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/store"
)

// stalled returns the first layer of an image, of which nothing comes until release is called.
func stalled(t *testing.T) (v *openLayer, release func()) {
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
	table := w.openWith(Options{Root: testDir(t), Mode: EROFS,
		Fetch: fetch.Options{Fill: fetch.All}})
	release = sync.OnceFunc(func() { close(come) })
	t.Cleanup(release) // before the table is closed
	w.mountAll(table)
	v, err := table.stored(w.layers[0], "")
	if err != nil {
		t.Fatal(err)
	}
	return v, release
}

// TestLostBeforeCheck: what the store loses of a layer that has come whole, before it is checked,
// comes again.
func TestLostBeforeCheck(t *testing.T) {
	v, release := stalled(t)
	func() {
		defer v.proof.Settling()() // nothing is checked
		release()
		eventually(t, "all has come", v.store.AllPresent)
		if n, err := v.data.Evict([]int{0}); n == 0 || err != nil {
			t.Fatalf("%d bytes are lost: %v", n, err)
		}
	}()
	eventually(t, "the layer is whole and checked", func() bool {
		return v.store.Record().State == store.Verified
	})
}

// TestFolderGoneBeforeFill: a layer comes whole, though somebody took its folder away before
// anything of it had come.
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

// profile keeps a profile that names the first bytes of layers.
func (w *world) profile(layers ...digest.Digest) *profile.Dir {
	w.t.Helper()
	dir := profile.NewDir(testDir(w.t))
	p := &profile.Profile{Manifest: w.manifest, Runs: 1}
	for _, d := range layers {
		p.Ranges = append(p.Ranges, profile.Range{Layer: d, Size: 512, Runs: 1})
	}
	if _, err := dir.Save(p); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// unfinished returns how many replays have something left to fetch.
func unfinished(t *Table) (n int) {
	for _, r := range t.Replays() {
		if !r.Finished {
			n++
		}
	}
	return n
}

// TestReplayEnds: nothing is left of a replay of layers that are whole, or that the image has not;
// what is given up of them later does not come back by itself.
func TestReplayEnds(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	profiles := w.profile(w.layers[0], digest.FromString("another image's"), w.layers[1])
	table := w.openWith(Options{Root: testDir(t), Mode: Auto, Profiles: profiles})
	w.mountAll(table)
	eventually(t, "the profile was replayed", func() bool {
		all := table.Replays()
		return len(all) == 1 && all[0].Finished
	})
	before := w.fetched.Load()
	if err := table.Cache().GiveUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if n := w.fetched.Load() - before; n > 0 {
		t.Errorf("%d bytes came back by themselves", n)
	}
}

// TestReplayEndsWithPull: what a replay has of layers that have not come ends with the pull.
func TestReplayEndsWithPull(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	table := w.openWith(Options{Root: testDir(t), Mode: Auto, Profiles: w.profile(w.layers...)})
	d := w.layers[0]
	gate := func(path string) {
		if strings.HasSuffix(path, d.String()) {
			time.Sleep(time.Second)
		}
	}
	w.gate.Store(&gate)
	p, err := table.pulls.Begin(requestOf(Layer{Ref: w.ref, Manifest: w.manifest, Digest: d,
		Image: w.layers}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Resolve(); err != nil {
		t.Fatal(err)
	}
	if n := unfinished(table); n != 1 {
		t.Errorf("%d replays while the pull goes on", n)
	}
	p.Leave()
	p.End(context.Background())
	eventually(t, "the replay ends", func() bool { return unfinished(table) == 0 })
}

// block makes writing a layer's record fail until the returned function is called.
func block(t *testing.T, dir string) (unblock func()) {
	t.Helper()
	tmp := filepath.Join(dir, "layer.json.tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(tmp); err != nil {
			t.Fatal(err)
		}
	}
}

// verified says whether the record on disk calls the layer verified.
func verified(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), `"verified"`)
}

// TestCompletedAgain: a layer whose end could not be recorded is completed when it can be.
func TestCompletedAgain(t *testing.T) {
	v, release := stalled(t)
	dir := v.store.Dir()
	unblock := block(t, dir)
	release()
	eventually(t, "all has come", v.store.AllPresent)
	time.Sleep(completeAfter + completeFirst/2)
	if verified(t, dir) {
		t.Error("the record was written")
	}
	unblock()
	eventually(t, "the layer is whole and checked", func() bool { return verified(t, dir) })
}

// TestCompletedByNextRun: a layer that was proved, and not recorded as verified, is completed by
// the next run.
func TestCompletedByNextRun(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	root := testDir(t)
	first := w.openWith(Options{Root: root, Mode: EROFS})
	w.mountAll(first)
	dir := filepath.Join(root, "layers/sha256", w.layers[0].Encoded())
	eventually(t, "the layer is whole and checked", func() bool { return verified(t, dir) })
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "layer.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b = []byte(strings.Replace(string(b), `"verified"`, `"complete"`, 1))
	if strings.Contains(string(b), "vouchers") {
		t.Fatalf("it is not proved: %s", b)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	second := w.openWith(Options{Root: root, Mode: EROFS})
	w.mountAll(second)
	eventually(t, "the layer is checked", func() bool { return verified(t, dir) })
}
