package fs

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/pull"
)

// promiseWorld is a registry with an image of two layers, of which the index tells; the upper one
// implies directories.
func promiseWorld(t *testing.T) *world {
	w := newWorld(t, twoLayers(t)...)
	w.tell = true
	w.index(nil)
	w.far(func() {})
	return w
}

// far makes the registry answer late enough for promises. Before it sends the index it calls trees.
func (w *world) far(trees func()) {
	late := func(path string) {
		switch {
		case strings.Contains(path, "/referrers/"):
			time.Sleep(promiseFrom)
		case strings.HasSuffix(path, w.indexed.Trees.Digest.String()):
			trees()
		}
	}
	w.gate.Store(&late)
}

// TestPromise: what a layer will be is known before its index is here, and is what it then is.
func TestPromise(t *testing.T) {
	w := promiseWorld(t)
	if len(w.told) != 1 || w.told[0].Digest != w.layers[0] {
		t.Fatalf("told of %v, want the lower layer %s alone", w.told, w.layers[0])
	}
	table := w.open(testDir(t), Auto)
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	defer release()
	w.far(func() { <-gate })
	promised, ok := table.Promise(t.Context(), w.layer(0), nil)
	if !ok {
		t.Fatal("no promise")
	}
	if m, ok := table.Promise(t.Context(), w.layer(1), []Below{{w.layers[0], promised.Dir}}); ok {
		t.Errorf("promise of a layer that depends on those below it: %+v", m)
	}
	start := time.Now()
	time.AfterFunc(50*time.Millisecond, release)
	table.pulls.AwaitPromised()
	if all := table.Status(); len(all) == 0 || all[0].Mode == "" {
		t.Errorf("Status %v after the start: %v, want the promised layer", time.Since(start), all)
	}
	m, err := table.Mount(t.Context(), w.layer(0), nil)
	if err != nil || m != promised {
		t.Errorf("Mount: %+v, %v; promised was %+v", m, err, promised)
	}
	if got := readTree(t, m.Dir); !strings.Contains(got, sum(bigFile)) {
		t.Errorf("the layer holds\n%s", got)
	}
	if m, ok := table.Promise(t.Context(), w.layer(0), nil); ok {
		t.Errorf("promise of a layer that is here: %+v", m)
	}
}

// TestNoPromise: where it is not certain what Mount returns, there is no promise.
func TestNoPromise(t *testing.T) {
	w := promiseWorld(t)
	untold := newWorld(t, twoLayers(t)...)
	untold.index(nil)
	untold.far(func() {})
	other := w.layer(0)
	other.DiffID = digest.FromString("another")
	for name, c := range map[string]struct {
		w *world
		o Options
		l Layer
	}{
		"an index that tells nothing": {untold, Options{}, untold.layer(0)},
		"another diffID":              {w, Options{}, other},
		"over the limit": {w, Options{Limits: pull.Limits{LayerSize: 1000}},
			w.layer(0)},
		"indexes of registries unwanted": {w, Options{LocalIndexes: true}, w.layer(0)},
		"local mode":                     {w, Options{Mode: Local}, w.layer(0)},
	} {
		c.o.Root, c.o.Fetch = testDir(t), fetch.Options{Fill: fetch.None}
		t.Run(name, func(t *testing.T) {
			table := c.w.openWith(c.o)
			if _, err := table.kernel(); err != nil {
				t.Fatal(err)
			}
			if m, ok := table.Promise(t.Context(), c.l, nil); ok {
				t.Errorf("promise %+v", m)
			}
		})
	}
}

// TestPromiseOnce: a layer whose promise was not kept is not promised again.
func TestPromiseOnce(t *testing.T) {
	w := promiseWorld(t)
	table := w.open(testDir(t), Auto)
	w.far(func() { w.broken.Store(true) })
	if _, ok := table.Promise(t.Context(), w.layer(0), nil); !ok {
		t.Fatal("no promise")
	}
	if m, err := table.Mount(t.Context(), w.layer(0), nil); err == nil {
		t.Fatalf("Mount without an index: %+v", m)
	}
	w.far(func() {})
	w.broken.Store(false)
	if m, ok := table.Promise(t.Context(), w.layer(0), nil); ok {
		t.Errorf("promise %+v", m)
	}
	if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
		t.Error(err)
	}
}
