package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// containerdDB is the metadata of a containerd that has the snapshotter as a plugin.
type containerdDB struct {
	*metadata.DB
	snapshots.Snapshotter
}

func openContainerd(t *testing.T, s *Snapshotter) containerdDB {
	t.Helper()
	dir := t.TempDir()
	content, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	m := metadata.NewDB(db, content, map[string]snapshots.Snapshotter{"mica": s, "stargz": s.BuildKit()})
	if err := m.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return containerdDB{m, m.Snapshotter("mica")}
}

// lease returns a context of a namespace in which what is made is kept from garbage collection,
// until release is called.
func (db containerdDB) lease(t *testing.T, namespace string) (ctx context.Context, release func()) {
	t.Helper()
	ctx = namespaces.WithNamespace(t.Context(), namespace)
	manager := metadata.NewLeaseManager(db.DB)
	l, err := manager.Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	return leases.WithLease(ctx, l.ID), func() {
		if err := manager.Delete(ctx, l); err != nil {
			t.Fatal(err)
		}
	}
}

// pull prepares the layers of an image as containerd's unpacker does: it looks for the chain ID
// after ErrAlreadyExists. It returns how many layers it had to unpack.
func (db containerdDB) pull(
	ctx context.Context, pull string, img testImage,
) (unpacked int, err error) {
	parent := ""
	for i, chain := range img.chains {
		opts := snapshots.WithLabels(img.labels(i))
		key := fmt.Sprintf("extract-%s-%d %s", pull, i, chain)
		_, err := db.Prepare(ctx, key, parent, opts)
		if err == nil {
			unpacked++
			err = db.Commit(ctx, chain.String(), key, opts)
		}
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return unpacked, fmt.Errorf("layer %d: %w", i, err)
		}
		if _, err := db.Stat(ctx, chain.String()); err != nil {
			return unpacked, fmt.Errorf("layer %d: %w", i, err)
		}
		parent = chain.String()
	}
	return unpacked, nil
}

func (db containerdDB) collect(t *testing.T) {
	t.Helper()
	if _, err := db.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestNamespaces pulls images that share layers in two namespaces, and removes them one after
// another.
func TestNamespaces(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	db := openContainerd(t, s)
	first, release1 := db.lease(t, "first")
	second, release2 := db.lease(t, "second")
	app, tool := imageOf("app", "base", "lib", "app"), imageOf("tool", "base", "lib", "tool")

	for _, pull := range []struct {
		ctx    context.Context
		img    testImage
		mounts int // after it, in all
	}{{first, app, 3}, {second, app, 3}, {second, tool, 4}, {first, app, 3 + 1}} {
		unpacked, err := db.pull(pull.ctx, fmt.Sprint(time.Now().UnixNano()), pull.img)
		if err != nil || unpacked != 0 {
			t.Fatalf("pull %s: %d layers unpacked, err %v", pull.img.ref, unpacked, err)
		}
		if n := len(layers.mountCalls()); n != pull.mounts {
			t.Errorf("after pull of %s: %d mounts, want %d", pull.img.ref, n, pull.mounts)
		}
	}
	if _, err := db.Prepare(first, "container", app.chains[2].String()); err != nil {
		t.Fatal(err)
	}
	dir := func() string {
		mounts, err := db.Mounts(first, "container")
		if err != nil {
			t.Fatal(err)
		}
		return mountAt(t, mounts)
	}()
	if got, want := readFile(t, dir, "all"), app.layers[2].String(); got != want {
		t.Errorf("container sees %s, want %s", got, want)
	}

	release2()
	db.collect(t)
	if removed := layers.removals(); !slices.Equal(removed, tool.layers[2:]) {
		t.Errorf("after the second namespace is gone, removed %v, want %v only", removed,
			tool.layers[2:])
	}
	release1()
	db.collect(t)
	if removed := layers.removals(); len(removed) != 4 {
		t.Errorf("after both are gone, removed %v, want all", removed)
	}
	if n := snapshotCount(t, s); n != 0 {
		t.Errorf("%d snapshots are left", n)
	}
}

// TestNamespacesAtOnce pulls the same image in several namespaces at once, and collects garbage all
// the while.
func TestNamespacesAtOnce(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	db := openContainerd(t, s)
	layers.hook(func(context.Context, Layer) (Mounted, error) {
		time.Sleep(time.Millisecond) // so that the pulls overlap
		return Mounted{}, errDefault
	})
	stop, collector := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				collector <- nil
				return
			default:
				// Cleanup is what GarbageCollect ends with.
				if err := s.Cleanup(t.Context()); err != nil {
					collector <- err
					return
				}
			}
		}
	}()
	img := numbered("image", 6)
	var pulls sync.WaitGroup
	for i := range 6 {
		ctx, _ := db.lease(t, fmt.Sprint("namespace-", i%3))
		pulls.Go(func() {
			if unpacked, err := db.pull(ctx, fmt.Sprint("pull-", i), img); err != nil ||
				unpacked != 0 {
				t.Errorf("pull %d: %d layers unpacked, err %v", i, unpacked, err)
			}
		})
	}
	pulls.Wait()
	close(stop)
	if err := <-collector; err != nil {
		t.Error(err)
	}
	for _, d := range img.layers {
		if !layers.isMounted(d) {
			t.Errorf("layer %s is not mounted", d)
		}
	}
}

// TestSameChainDifferentParents: one namespace unpacked the lowest layer, the other has it served.
// The layer above then has the same chain ID on two parents.
func TestSameChainDifferentParents(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	now := time.Now()
	s.now = func() time.Time { return now }
	db := openContainerd(t, s)
	first, _ := db.lease(t, "first")
	second, _ := db.lease(t, "second")
	app := imageOf("app", "base", "app")

	layers.hook(func(context.Context, Layer) (Mounted, error) {
		return Mounted{}, fmt.Errorf("no index: %w", ErrUnavailable)
	})
	if unpacked, err := db.pull(first, "1", imageOf("base", "base")); err != nil || unpacked != 1 {
		t.Fatalf("%d layers unpacked, err %v", unpacked, err)
	}
	layers.hook(nil)
	now = now.Add(fallbackPull + 1)
	for i, ctx := range []context.Context{first, second} {
		if unpacked, err := db.pull(ctx, "2", app); err != nil || unpacked != 0 {
			t.Fatalf("namespace %d: %d layers unpacked, err %v", i, unpacked, err)
		}
		mounts, err := db.Prepare(ctx, "container", app.chains[1].String())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := readFile(t, mountAt(t, mounts),
			"all"), app.layers[1].String(); got != want {
			t.Errorf("namespace %d sees %s, want %s", i, got, want)
		}
	}
	if n := snapshotCount(t, s); n != 6 { // base unpacked and served, app on each, two containers
		t.Errorf("%d snapshots, want 6", n)
	}
}
