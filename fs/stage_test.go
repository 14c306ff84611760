package fs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index"
)

var stageNames = map[stage]string{
	stageClosed: "closed", stageLazy: "lazy", stageWhole: "whole", stageDisproved: "disproved",
	stageProved: "proved", stageLocal: "local",
}

// is fails unless the layer is at a stage.
func is(t *testing.T, v *openLayer, want stage) {
	t.Helper()
	if got := v.stage(); got != want {
		t.Fatalf("the layer is %s, want %s", stageNames[got], stageNames[want])
	}
}

// reaches waits until the layer is at a stage.
func reaches(t *testing.T, v *openLayer, want stage) {
	t.Helper()
	eventually(t, "the layer is "+stageNames[want], func() bool { return v.stage() == want })
}

// lose takes the first span from the layer, which is lazy then.
func lose(t *testing.T, v *openLayer) {
	t.Helper()
	if n, err := v.data.Evict([]int{0}); n == 0 || err != nil {
		t.Fatalf("%d bytes are lost: %v", n, err)
	}
	is(t, v, stageLazy)
}

// reopened is the layer as it is opened anew.
func reopened(t *testing.T, v *openLayer) *openLayer {
	t.Helper()
	if err := v.t.Unmount(v.digest); err != nil {
		t.Fatal(err)
	}
	is(t, v, stageClosed)
	next, err := v.t.stored(v.digest, "")
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// TestStages walks the edges of a layer's life that the package comment names.
func TestStages(t *testing.T) {
	for name, walk := range map[string]func(*testing.T){
		"lazy, whole, lazy, local, lazy, local": walkToLocal,
		"whole, opened again":                   walkWholeReopened,
		"whole, disk full":                      walkFullWhole,
		"proved, disk full":                     walkFullProved,
		"proved for want of room":               walkProved,
		"disproved":                             walkDisproved,
		"local, damaged":                        walkDamaged,
	} {
		t.Run(name, walk)
	}
}

func walkToLocal(t *testing.T) {
	v, release := stalled(t)
	is(t, v, stageLazy)
	settled := v.proof.Settling() // nothing is checked
	release()
	reaches(t, v, stageWhole)
	lose(t, v)
	settled()
	reaches(t, v, stageLocal) // fetched again by itself
	if n, err := v.MakeLazy(t.Context()); n == 0 || err != nil {
		t.Fatalf("%d bytes went: %v", n, err)
	}
	is(t, v, stageLazy)
	if err := v.proof.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	is(t, v, stageLocal)
	is(t, reopened(t, v), stageLocal)
}

// walkWholeReopened: a layer that was not checked is, when it is opened again.
func walkWholeReopened(t *testing.T) {
	v, release := stalled(t)
	settled := v.proof.Settling()
	release()
	recorded(t, v)
	is(t, v, stageWhole)
	v.stop()
	settled()
	next := reopened(t, v)
	is(t, next, stageWhole)
	reaches(t, next, stageLocal)
}

// recorded waits until layer.json says that all of the layer is here.
func recorded(t *testing.T, v *openLayer) {
	t.Helper()
	eventually(t, "the layer is recorded", func() bool {
		b, err := os.ReadFile(filepath.Join(v.store.Dir(), "layer.json"))
		return err == nil && strings.Contains(string(b), `"complete"`)
	})
}

func walkFullWhole(t *testing.T) {
	v, release := stalled(t)
	unblock := block(t, v.store.Dir())
	release()
	reaches(t, v, stageWhole)
	time.Sleep(completeAfter + completeFirst/2)
	is(t, v, stageWhole)
	unblock()
	reaches(t, v, stageLocal)
}

func walkFullProved(t *testing.T) {
	v, release := stalled(t)
	settled := v.proof.Settling()
	release()
	recorded(t, v)
	unblock := block(t, v.store.Dir())
	settled()
	reaches(t, v, stageProved)
	if verified(t, v.store.Dir()) {
		t.Error("the record was written")
	}
	unblock()
	eventually(t, "the record is written", func() bool { return verified(t, v.store.Dir()) })
	reaches(t, v, stageLocal) // which it is once its record is written
}

func walkProved(t *testing.T) {
	blob, _ := manyFiles(t, 13, 16, 128<<10)
	w := newWorld(t, blob)
	w.index(nil)
	root := testDir(t)
	o := Options{Root: root, Mode: EROFS, Fetch: fetch.Options{Fill: fetch.None}}
	o.Cache = cache.Options{Size: 2_600_000} // too little for a layer that cannot go in parts
	table := w.openWith(o)
	w.mountAll(table)
	v := table.opened(false)[0]
	for range 2 {
		if err := v.proof.Prove(t.Context()); err != nil {
			t.Fatal(err)
		}
		is(t, v, stageProved)
		lose(t, v)
	}
	if err := v.proof.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	is(t, v, stageClosed)
	o.Cache.Size = 0
	next, err := w.openWith(o).stored(v.digest, "")
	if err != nil {
		t.Fatal(err)
	}
	is(t, next, stageProved)
	reaches(t, next, stageLocal)
}

func walkDisproved(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	claimed := w.diffIDs[1]
	w.index(func(d *index.Draft) {
		if d.Layer == w.layers[0] {
			d.DiffID = claimed
		}
	})
	l := w.layer(0)
	l.DiffID = claimed
	table := w.open(testDir(t), EROFS)
	if _, err := table.Mount(t.Context(), l, nil); err != nil {
		t.Fatal(err)
	}
	v, err := table.stored(l.Digest, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.proof.Prove(t.Context()); !errors.Is(err, proof.ErrDisproved) {
		t.Fatal(err)
	}
	is(t, v, stageDisproved)
	lose(t, v)
	if err := v.data.Fetch(t.Context(), 0, 1, line.Demand); err != nil {
		t.Fatal(err)
	}
	reaches(t, v, stageDisproved)
	is(t, reopened(t, v), stageDisproved)
}

// walkDamaged: what is wrong in a local layer is put right in place; a layer with a damaged index
// goes when it is opened again.
func walkDamaged(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	root := testDir(t)
	table := w.open(root, Auto)
	w.mountAll(table)
	v, err := table.stored(w.layers[0], "")
	if err != nil {
		t.Fatal(err)
	}
	is(t, v, stageLocal)
	harm(t, table, v.digest, 700)
	if got, err := table.Verify(t.Context(), v.digest); err != nil || got.Repaired != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	is(t, v, stageLocal)
	path := v.store.IndexPath()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-100] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := table.Verify(t.Context(), v.digest); err != nil || got.Error == "" {
		t.Fatalf("%+v, %v", got, err)
	}
	is(t, v, stageLocal)
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = w.open(root, Auto).stored(v.digest, "")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the damaged layer is still here: %v", err)
	}
}
