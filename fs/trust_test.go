package fs

import (
	"errors"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index"
)

// setuid forges the tree of the layer that has /etc.
func setuid(d *index.Draft) {
	if etc := d.Root.Children["etc"]; etc != nil {
		etc.Children["big"].Mode |= 0o4000
	}
}

// TestOtherRepositorysIndex: two repositories have the same layers, and the index of the first is
// forged. Images of the second must not show it.
func TestOtherRepositorysIndex(t *testing.T) {
	for name, second := range map[string]func(*world){
		"which has no index": func(*world) {},
		"which has its own":  func(w *world) { w.index(nil) },
		"which is down":      func(w *world) { w.broken.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			evil, good := newWorld(t, twoLayers(t)...), newWorld(t, twoLayers(t)...)
			evil.index(setuid)
			second(good)
			root := testDir(t)
			table := evil.open(root, Auto)
			forged := evil.mountAll(table)
			if got := readTree(t, forged[0]); !strings.Contains(got, "etc/big u") {
				t.Fatalf("the index is not forged: nothing is tested\n%s", got)
			}
			dirs := good.mountAll(table)
			if got := readTree(t, dirs[0]); strings.Contains(got, "etc/big u") ||
				!strings.Contains(got, "etc/big -rw-r--r-- "+sum(bigFile)) {
				t.Errorf("an image of another repository shows the forged tree:\n%s", got)
			}
			l, err := table.store.Layer(good.layers[0])
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if v := l.Record().Vouchers; len(v) != 0 {
				t.Errorf("the layer is proved, and %q vouch for it", v)
			}
		})
	}
}

// TestSameIndexElsewhere: repositories that have the same index vouch for it both, and nothing is
// fetched for that but the index; a restart asks nobody.
func TestSameIndexElsewhere(t *testing.T) {
	first, second := newWorld(t, twoLayers(t)...), newWorld(t, twoLayers(t)...)
	first.index(nil)
	second.index(nil)
	root := testDir(t)
	table := first.open(root, Auto)
	first.mountAll(table)
	second.mountAll(table)
	if n := first.fetched.Load() + second.fetched.Load(); n != 0 {
		t.Errorf("%d bytes of layers were fetched", n)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	first.broken.Store(true)
	second.broken.Store(true)
	table = first.open(root, Auto)
	first.mountAll(table)
	second.mountAll(table)
}

// TestTrustLocal: indexes that came from a registry before index.trust was "local" are proved
// before they are used again.
func TestTrustLocal(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(setuid)
	root := testDir(t)
	table := w.open(root, Auto)
	w.mountAll(table)
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	table = w.openWith(Options{Root: root, Mode: Auto, LocalIndexes: true,
		Fetch: fetch.Options{Fill: fetch.None}})
	if got := readTree(t, w.mountAll(table)[0]); strings.Contains(got, "etc/big u") {
		t.Errorf("the forged tree is shown:\n%s", got)
	}
}

// TestUnprovable: an index whose digests are not the layer's gives way to what another repository's
// image has.
func TestUnprovable(t *testing.T) {
	for name, indexed := range map[string]bool{"which has an index": true,
		"which has none": false} {
		t.Run(name, func(t *testing.T) {
			evil, good := newWorld(t, twoLayers(t)...), newWorld(t, twoLayers(t)...)
			evil.index(func(d *index.Draft) { d.Spans[len(d.Spans)-1].Digest[0] ^= 1 })
			if indexed {
				good.index(nil)
			}
			table := evil.open(testDir(t), Auto)
			evil.mountAll(table)
			got := readTree(t, good.mountAll(table)[0])
			if !strings.Contains(got, "etc/big -rw-r--r-- "+sum(bigFile)) {
				t.Errorf("the layer shows\n%s", got)
			}
			if proved, _ := table.Trust(good.layer(0)); !proved {
				t.Error("it is not proved")
			}
		})
	}
}

// TestDisproved: what is known to be of other bytes than its diffID's stays so over a restart, for
// the repository that has claimed it.
func TestDisproved(t *testing.T) {
	evil, good := newWorld(t, twoLayers(t)...), newWorld(t, twoLayers(t)[1])
	claimed, honest := good.diffIDs[0], newWorld(t, twoLayers(t)...)
	evil.index(func(d *index.Draft) {
		if d.Layer == evil.layers[0] {
			d.DiffID = claimed
		}
	})
	l := evil.layer(0)
	l.DiffID = claimed
	root := testDir(t)
	table := evil.open(root, Auto)
	if _, err := table.Mount(t.Context(), l, nil); err != nil {
		t.Fatal(err)
	}
	if ok, err := table.Vouched(t.Context(), l); !ok || err != nil {
		t.Errorf("its own repository vouches for it: %v, %v", ok, err)
	}
	if proved, _ := table.Trust(l); proved {
		t.Error("it is not unproved")
	}
	if err := table.Prove(t.Context(), l.Digest); !errors.Is(err, proof.ErrDisproved) {
		t.Errorf("proof: %v", err)
	}
	for range 2 {
		if _, err := table.Mount(t.Context(), l, nil); !errors.Is(err, proof.ErrDisproved) {
			t.Errorf("mount: %v", err)
		}
		if ok, err := table.Vouched(t.Context(), l); ok || !errors.Is(err, proof.ErrDisproved) {
			t.Errorf("vouched: %v, %v", ok, err)
		}
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
		table = evil.open(root, Auto)
	}
	// Another repository may have it for what it is, which is not what this one claims.
	if _, err := table.Mount(t.Context(), honest.layer(0), nil); err != nil {
		t.Fatal(err)
	}
	if proved, _ := table.Trust(honest.layer(0)); !proved {
		t.Error("it is not proved to be what it is")
	}
	if proved, _ := table.Trust(l); proved {
		t.Error("it is proved to be what it is not")
	}
	if ok, err := table.Vouched(t.Context(), l); ok || !errors.Is(err, proof.ErrDisproved) {
		t.Errorf("vouched for what it is not: %v, %v", ok, err)
	}
	// Removed, it may be brought anew.
	if err := table.Remove(t.Context(), l.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Mount(t.Context(), l, nil); err != nil {
		t.Error(err)
	}
}
