package fs

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/pull"
)

// counted counts the requests that the world's registry gets, by a part of their path.
func (w *world) counted(part string) *atomic.Int64 {
	var n atomic.Int64
	count := func(path string) {
		if strings.Contains(path, part) {
			n.Add(1)
		}
	}
	w.gate.Store(&count)
	return &n
}

func (w *world) announce(t *Table) {
	w.t.Helper()
	if err := t.pulls.Announce(proof.RepositoryOf(w.ref), w.manifest, w.layers); err != nil {
		w.t.Fatal(err)
	}
}

// has says whether the store has all layers.
func (w *world) has(t *Table) bool {
	for _, d := range w.layers {
		l, err := t.store.Layer(d)
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// pullOf is the one pull of a table, nil if there is none.
func pullOf(t *Table) *pull.Pull {
	for _, p := range t.pulls.Under() {
		return p
	}
	return nil
}

// TestAnnounce: the index of an image that was announced is here before anybody asks for a layer,
// nothing is mounted by then, and nobody asks the registry a second time.
func TestAnnounce(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	profiles := profile.NewDir(testDir(t))
	table := w.openWith(Options{Root: testDir(t), Profiles: profiles, RecordTime: time.Millisecond,
		Fetch: fetch.Options{Fill: fetch.None}})
	asked := w.counted("/referrers/")
	w.announce(table)
	eventually(t, "the layers' indexes are here", func() bool { return w.has(table) })
	if all := table.Status(); len(all) > 0 {
		t.Errorf("mounted before anybody has asked: %v", all)
	}
	dirs := w.mountAll(table)
	if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
		t.Errorf("the layer holds\n%s", got)
	}
	eventually(t, "the image's start is recorded once", func() bool {
		p, err := profiles.Load(w.manifest)
		return err == nil && p.Runs == 1
	})
	if asked.Load() != 1 {
		t.Errorf("%d requests for referrers, want 1", asked.Load())
	}
	for _, s := range table.Status() {
		if s.Ref != w.ref {
			t.Errorf("layer %s is said to be of %s, want %s", s.Layer, s.Ref, w.ref)
		}
	}
	w.announce(table) // of what is here
	time.Sleep(20 * time.Millisecond)
	if asked.Load() != 1 {
		t.Error("an image that is here was looked for once more")
	}
}

// TestAnnouncedForNobody: what came of an image that was announced for nothing goes, and
// announcements have no effect until an image is asked for.
func TestAnnouncedForNobody(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	table := w.open(testDir(t), Auto)
	w.announce(table)
	eventually(t, "the layers' indexes are here", func() bool { return w.has(table) })
	pullOf(table).End(t.Context())
	if list, err := table.store.Layers(); err != nil || len(list) > 0 {
		t.Errorf("left over: %v, %v", list, err)
	}
	w.announce(table)
	if p := pullOf(table); p != nil {
		t.Error("the next announcement has begun a pull")
	}
	w.mountAll(table)
	other := newWorld(t, layerOf(t, entry{"another", 0o644, smallFile}))
	other.index(nil)
	other.announce(table)
	eventually(t, "the other image's index is here", func() bool { return other.has(table) })
}

// TestAnnouncedBesideOthers: giving up an image that was announced for nothing takes no layer away
// that it has in common with one that is here, whether or not it is known that somebody uses that.
func TestAnnouncedBesideOthers(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	table := w.open(testDir(t), Auto)
	w.mountAll(table)
	eventually(t, "the pull has ended its jobs", func() bool {
		return len(table.pulls.Bringing()) == 0
	})
	pullOf(table).End(t.Context())
	table.mu.Lock()
	clear(table.demand.wanted) // as after a restart, and when the metadata are lost
	table.mu.Unlock()
	other := digest.FromString("another manifest")
	if err := table.pulls.Announce(w.ref, other,
		append(slices.Clone(w.layers), digest.FromString("another layer"))); err != nil {
		t.Fatal(err)
	}
	p := pullOf(table)
	if p == nil {
		t.Fatal("the announcement has begun no pull")
	}
	p.End(t.Context())
	if !w.has(table) {
		t.Error("layers went that were there before")
	}
}

// TestAnnouncedWithoutIndex: nothing is downloaded whole of an image before it is asked for.
func TestAnnouncedWithoutIndex(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	table := w.open(testDir(t), Auto)
	asked := w.counted("/referrers/")
	w.announce(table)
	eventually(t, "referrers are asked for", func() bool { return asked.Load() > 0 })
	if err := pullOf(table).Resolve(); err != nil { // which has come to its end then
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if n := w.fetched.Load(); n > 0 {
		t.Errorf("%d bytes were downloaded for nobody", n)
	}
	w.mountAll(table)
	if w.fetched.Load() == 0 {
		t.Error("nothing was downloaded")
	}
}

// TestManyAnnounced: images that are announced and not asked for are bounded in number.
func TestManyAnnounced(t *testing.T) {
	w := newWorld(t, layerOf(t, entry{"a", 0o644, smallFile}))
	table := w.open(testDir(t), Auto)
	repository := proof.RepositoryOf(w.ref)
	for i := range 3 * maxAnnounced {
		if err := table.pulls.Announce(repository+strings.Repeat("x", i), w.manifest,
			w.layers); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(table.pulls.Under()); n == 0 || n > maxAnnounced {
		t.Errorf("%d pulls, want at most %d", n, maxAnnounced)
	}
}
