package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// mountAt mounts what a snapshotter returned, until the end of the test, and returns the place.
func mountAt(t *testing.T, mounts []mount.Mount) string {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatalf("mount %v: %v", mounts, err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func readFile(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestServeImage(t *testing.T) {
	ctx := t.Context()
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	img := imageOf("example.org/app:1", "base", "lib", "app")
	top := mustPull(t, s, img)

	for i, c := range layers.mountCalls() {
		var below []Below
		for j := i - 1; j >= 0; j-- {
			below = append(below, Below{img.layers[j], layers.path(img.layers[j])})
		}
		want := Layer{
			Ref: img.ref, Manifest: img.manifest(), Digest: img.layers[i], DiffID: img.diffIDs[i],
			Image: img.layers[i:],
		}
		if fmt.Sprint(c.Layer) != fmt.Sprint(want) || fmt.Sprint(c.below) != fmt.Sprint(below) {
			t.Errorf("layer %d: Mount(%v, %v), want Mount(%v, %v)", i, c.Layer, c.below, want,
				below)
		}
	}
	info, err := s.Stat(ctx, top)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range img.labels(2) {
		if info.Labels[k] != v {
			t.Errorf("label %s of the committed snapshot is %q, want %q", k, info.Labels[k], v)
		}
	}
	if usage, err := s.Usage(ctx, top); err != nil || usage.Size != 1<<20 || usage.Inodes != 3 {
		t.Errorf("Usage = %v, %v; want what Mount said", usage, err)
	}

	mounts, err := s.Prepare(ctx, "container", top)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Mounts(ctx, "container")
	if err != nil || !reflect.DeepEqual(mounts, again) {
		t.Errorf("Mounts = %v, %v; Prepare returned %v", again, err, mounts)
	}
	dir := mountAt(t, mounts)
	if got, want := readFile(t, dir, "all"), img.layers[2].String(); got != want {
		t.Errorf("the topmost file is %s's, want %s's", got, want)
	}
	for _, d := range img.layers {
		readFile(t, dir, d.Encoded()[:8])
	}
	if err := os.WriteFile(filepath.Join(dir, "written"), []byte("x"), 0o644); err != nil {
		t.Errorf("write to the container's layer: %v", err)
	}
	if got := s.Stats(); got.Served != 3 || got.Fallbacks+got.Unannotated != 0 {
		t.Errorf("Stats = %+v", got)
	}
}

func TestViewOfServed(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	for n := 1; n <= 2; n++ {
		img := numbered(fmt.Sprint("image-", n), n)
		top := mustPull(t, s, img)
		mounts, err := s.View(t.Context(), fmt.Sprint("view-", n), top)
		if err != nil {
			t.Fatal(err)
		}
		if single := mounts[0].Type == "bind" &&
			mounts[0].Source == layers.path(img.layers[0]); single != (n == 1) {
			t.Errorf("%d layers: view is %v", n, mounts)
		}
		dir := mountAt(t, mounts)
		if got, want := readFile(t, dir, "all"), img.layers[n-1].String(); got != want {
			t.Errorf("%d layers: view shows the file of %s, want of %s", n, got, want)
		}
		if err := os.WriteFile(filepath.Join(dir, "written"), nil, 0o644); err == nil {
			t.Errorf("%d layers: the view can be written to", n)
		}
	}
}

// TestManyLayers mounts more layers than fit into a page of mount options with their whole paths.
func TestManyLayers(t *testing.T) {
	s := open(t, t.TempDir(), newFakeLayers(t))
	img := numbered("many", 100)
	top := mustPull(t, s, img)
	mounts, err := s.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	dir := mountAt(t, mounts)
	for _, d := range img.layers {
		readFile(t, dir, d.Encoded()[:8])
	}
}

// TestNoTransactionHeld uses the snapshotter from inside Mount, writing too.
func TestNoTransactionHeld(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	n := 0
	layers.hook(func(ctx context.Context, l Layer) (Mounted, error) {
		n++
		key := fmt.Sprint("inner-", n)
		_, err := s.Prepare(ctx, key, "")
		err = errors.Join(err, s.Commit(ctx, key+"-committed", key),
			s.Remove(ctx, key+"-committed"), s.Cleanup(ctx))
		if err != nil {
			return Mounted{}, err
		}
		return Mounted{}, errDefault
	})
	mustPull(t, s, numbered("image", 3))
	if n != 3 {
		t.Errorf("%d mounts, want 3", n)
	}
}

func TestPrepareAgain(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	img := numbered("image", 3)
	first := mustPull(t, s, img)
	calls := len(layers.mountCalls())
	if second := mustPull(t, s, img); second != first {
		t.Errorf("the second pull ends at %s, the first at %s", second, first)
	}
	if n := len(layers.mountCalls()); n != calls {
		t.Errorf("the second pull mounts: %d calls", n-calls)
	}
}

func TestConcurrentPulls(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers)
	img := numbered("image", 5)
	const pullers = 8
	// The first mount of each waits for all the others: they are at work on the same target at
	// once.
	var arrived sync.WaitGroup
	arrived.Add(pullers)
	layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
		if l.Digest == img.layers[0] {
			arrived.Done()
			arrived.Wait()
		}
		return Mounted{}, errDefault
	})
	tops := make([]string, pullers)
	var group sync.WaitGroup
	for i := range pullers {
		group.Go(func() {
			for j := range img.layers {
				name, unpacked, err := pullLayer(t.Context(), s, fmt.Sprintf("pull-%d-%d", i, j),
					tops[i], img.labels(j))
				if err != nil || unpacked {
					t.Errorf("pull %d, layer %d: unpacked %v, err %v", i, j, unpacked, err)
					return
				}
				tops[i] = name
			}
		})
	}
	group.Wait()
	for _, top := range tops[1:] {
		if top != tops[0] {
			t.Errorf("pulls end at %s and %s", tops[0], top)
		}
	}
	if removed := layers.removals(); len(removed) != 0 {
		t.Errorf("layers in use were removed: %v", removed)
	}
	if n := snapshotCount(t, s); n != len(img.layers) {
		t.Errorf("%d snapshots, want %d", n, len(img.layers))
	}
}

func snapshotCount(t *testing.T, s *Snapshotter) (n int) {
	t.Helper()
	err := s.Walk(t.Context(), func(context.Context, snapshots.Info) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFailureLeavesNothing lets the commit fail after the layer is mounted.
func TestFailureLeavesNothing(t *testing.T) {
	img := imageOf("image", "base", "app")
	for _, tc := range []struct {
		name string
		fail func(t *testing.T, s *Snapshotter, base string) (Mounted, error)
		want func(error) bool
	}{
		{"parent removed meanwhile", func(t *testing.T, s *Snapshotter, base string) (Mounted, error) {
			if err := s.Remove(t.Context(), base); err != nil {
				t.Error(err)
			}
			return Mounted{}, errDefault
		}, errdefs.IsNotFound},
		{"key taken meanwhile", func(t *testing.T, s *Snapshotter, _ string) (Mounted, error) {
			if _, err := s.Prepare(t.Context(), "key", ""); err != nil {
				t.Error(err)
			}
			return Mounted{}, errDefault
		}, errdefs.IsAlreadyExists},
		{"unusable directory", func(*testing.T, *Snapshotter, string) (Mounted, error) {
			return Mounted{Dir: "/a:b"}, nil
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "/a:b") }},
		{"another failure", func(*testing.T, *Snapshotter, string) (Mounted, error) {
			return Mounted{}, context.DeadlineExceeded
		}, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			layers := newFakeLayers(t)
			s := open(t, t.TempDir(), layers)
			base, _, err := pullLayer(t.Context(), s, "base", "", img.labels(0))
			if err != nil {
				t.Fatal(err)
			}
			layers.hook(func(context.Context, Layer) (Mounted, error) {
				return tc.fail(t, s, base)
			})
			mounts, err := s.Prepare(t.Context(), "key", base, snapshots.WithLabels(img.labels(1)))
			if !tc.want(err) {
				t.Fatalf("Prepare = %v, %v", mounts, err)
			}
			if err := s.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			if layers.isMounted(img.layers[1]) {
				t.Error("the layer is still mounted")
			}
			infos, err := s.list(t.Context(),
				`labels."`+snapshots.LabelSnapshotRef+`"==`+img.chains[1].String())
			if err != nil || len(infos) != 0 {
				t.Errorf("snapshots of the target: %v, %v", infos, err)
			}
			if marks, err := s.markedLayers(); err != nil || len(marks) > 1 {
				t.Errorf("marked layers: %v, %v", marks, err)
			}
		})
	}
}

// TestUnannotated: labels that name the chain alone, as clients that know nothing of lazy pulling
// set them. containerd's images tell which layer it is.
func TestUnannotated(t *testing.T) {
	img := imageOf("image", "base", "app")
	other := claiming("other", img, "base", "another") // which has gone from its registry
	layers := newFakeLayers(t)
	layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
		if l.Ref == "other" {
			return Mounted{}, fmt.Errorf("not found: %w", ErrUnavailable)
		}
		return Mounted{Dir: layers.path(l.Digest)}, nil
	})
	gone := imageOf("other", "gone")
	images := &fakeImages{all: []Image{other.image(), gone.image(), img.image()}}
	s := open(t, t.TempDir(), layers, WithImages(images))
	parent := ""
	for i, chain := range img.chains {
		labels := map[string]string{snapshots.LabelSnapshotRef: chain.String()}
		name, unpacked, err := pullLayer(t.Context(), s, fmt.Sprintf("ns/%d/extract", i), parent,
			labels)
		if err != nil || unpacked {
			t.Fatalf("layer %d: unpacked %v, err %v", i, unpacked, err)
		}
		parent = name
		calls := layers.mountCalls()
		l := calls[len(calls)-1].Layer
		if l.Ref != img.ref || l.Manifest != img.manifest() || l.Digest != img.layers[i] ||
			!slices.Equal(l.Image, img.layers[i:]) {
			t.Errorf("Mount(%+v)", l)
		}
	}
	if len(s.Fallbacks()) != 0 {
		t.Errorf("fallbacks %v", s.Fallbacks())
	}
	// The image that alone claims this chain has gone: containerd is left to find that out.
	labels := map[string]string{snapshots.LabelSnapshotRef: gone.chains[0].String()}
	if _, unpacked, err := pullLayer(t.Context(), s, "ns/9/extract", "", labels); err != nil ||
		!unpacked {
		t.Errorf("unpacked %v, err %v", unpacked, err)
	}
	if fb := s.Fallbacks(); len(fb) != 1 || fb[0].Ref != "other" {
		t.Errorf("fallbacks %v", fb)
	}
}

// TestOrdinaryUnannotated: what no image tells of is left to containerd.
func TestOrdinaryUnannotated(t *testing.T) {
	img := imageOf("image", "base")
	for name, tc := range map[string]struct {
		images Images
		target string
	}{
		"no images":          {nil, img.chains[0].String()},
		"image unknown":      {&fakeImages{}, img.chains[0].String()},
		"containerd is away": {&fakeImages{err: errors.New("away")}, img.chains[0].String()},
		"no chain ID":        {&fakeImages{all: []Image{img.image()}}, "layer-1"},
		"layers unknown": {&fakeImages{all: []Image{{
			Refs: []string{"odd"}, Manifest: img.manifest(), Chains: img.chains,
		}, img.image()}}, img.chains[0].String()},
	} {
		t.Run(name, func(t *testing.T) {
			for _, missing := range []string{
				"", snapshotters.TargetRefLabel, snapshotters.TargetLayerDigestLabel,
				snapshotters.TargetManifestDigestLabel,
			} {
				labels := map[string]string{}
				if missing != "" {
					labels = img.labels(0)
					delete(labels, missing)
				}
				labels[snapshots.LabelSnapshotRef] = tc.target
				layers := newFakeLayers(t)
				s := open(t, t.TempDir(), layers, WithImages(tc.images))
				_, unpacked, err := pullLayer(t.Context(), s, "ns/1/key", "", labels)
				if err != nil || !unpacked {
					t.Errorf("without %q: unpacked %v, err %v", missing, unpacked, err)
				}
				if st := s.Stats(); st.Served != 0 || len(layers.mountCalls()) != 0 ||
					len(s.Fallbacks()) != 0 {
					t.Errorf("Stats %+v, mounts %v, fallbacks %v", st, layers.mountCalls(),
						s.Fallbacks())
				}
			}
		})
	}
}

// TestChainIsChecked: an image whose manifest names one blob and whose config names the diffID of
// another must not define what other images see under that other one's chain ID.
func TestChainIsChecked(t *testing.T) {
	victim := imageOf("victim", "base", "lib")
	for _, tc := range []struct {
		name   string
		parent bool
		labels func(map[string]string)
		diffID digest.Digest
	}{
		{"label of the lowest layer", false, func(l map[string]string) {
			l[snapshots.LabelSnapshotDiffID] = digest.FromString("x").String()
		}, ""},
		{"label above another", true, func(l map[string]string) {
			l[snapshots.LabelSnapshotDiffID] = digest.FromString("x").String()
		}, ""},
		{"mounted as the lowest layer", false, func(l map[string]string) {
			delete(l, snapshots.LabelSnapshotDiffID)
		}, digest.FromString("tar evil")},
		{"mounted above another", true, func(l map[string]string) {
			delete(l, snapshots.LabelSnapshotDiffID)
		}, digest.FromString("tar evil")},
		{"mounted against the label", true, func(map[string]string) {},
			digest.FromString("tar evil")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			layers := newFakeLayers(t)
			s := open(t, t.TempDir(), layers)
			parent, i := "", 0
			if tc.parent {
				i = 1
				var err error
				if parent, _, err = pullLayer(t.Context(), s, "base", "",
					victim.labels(0)); err != nil {
					t.Fatal(err)
				}
			}
			evil := digest.FromString("blob evil")
			labels := victim.labels(i)
			labels[snapshotters.TargetLayerDigestLabel] = evil.String()
			labels[snapshotters.TargetRefLabel] = "evil"
			tc.labels(labels)
			layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
				return Mounted{Dir: layers.path(l.Digest), DiffID: tc.diffID}, nil
			})
			if _, unpacked, err := pullLayer(t.Context(), s, "key", parent, labels); err != nil ||
				!unpacked {
				t.Fatalf("unpacked %v, err %v; want containerd to unpack and to find out", unpacked,
					err)
			}
			if fb := s.Fallbacks(); len(fb) != 1 || fb[0].Layer != evil ||
				!strings.Contains(fb[0].Reason, "diffID") {
				t.Errorf("Fallbacks = %v", fb)
			}
		})
	}
}

// TestPrivateLabel: callers can neither make a snapshot refer to a directory of theirs nor take a
// reference away.
func TestPrivateLabel(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir(), newFakeLayers(t))
	forged := snapshots.WithLabels(map[string]string{
		recordLabel: `{"layer":"` + digest.FromString("x").String() +
			`","dir":"/etc"}`, "kept": "yes"})
	if _, err := s.Prepare(ctx, "active", "", forged); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "committed", "active", forged); err != nil {
		t.Fatal(err)
	}
	if _, err := s.View(ctx, "view", "", forged); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"committed", "view"} {
		var info snapshots.Info
		if err := forged(&info); err != nil {
			t.Fatal(err)
		}
		for _, paths := range [][]string{nil, {"labels"}, {"labels." + recordLabel}} {
			info.Name = name
			got, err := s.Update(ctx, info, paths...)
			if err != nil {
				t.Fatal(err)
			}
			stat, err := s.Stat(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := stat.Labels[recordLabel]; ok || got.Labels["kept"] != "yes" {
				t.Errorf("%s, fields %v: labels %v", name, paths, stat.Labels)
			}
		}
	}

	top := mustPull(t, s, numbered("image", 1))
	before, err := s.Stat(ctx, top)
	if err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][]string{nil, {"labels"}, {"labels." + recordLabel}} {
		if _, err := s.Update(ctx,
			snapshots.Info{Name: top,
				Labels: map[string]string{"new": "label"}}, paths...); err != nil {
			t.Fatal(err)
		}
		after, err := s.Stat(ctx, top)
		if err != nil || after.Labels[recordLabel] != before.Labels[recordLabel] {
			t.Errorf("fields %v: label is %q, was %q, err %v", paths, after.Labels[recordLabel],
				before.Labels[recordLabel], err)
		}
	}
}

// TestMappedExtraction: a layer to be unpacked for mapped IDs is not served.
func TestMappedExtraction(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers, WithRemapIDs())
	labels := imageOf("image", "base").labels(0)
	labels[snapshots.LabelSnapshotUIDMapping] = "0:1000:10"
	labels[snapshots.LabelSnapshotGIDMapping] = "0:1000:10"
	if _, err := s.Prepare(t.Context(), "key", "", snapshots.WithLabels(labels)); err != nil ||
		len(layers.mountCalls()) != 0 {
		t.Errorf("err %v, mounts %v", err, layers.mountCalls())
	}
}

// TestStorageIsCompatible: metadata.db is what containerd's storage package reads.
func TestStorageIsCompatible(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, newFakeLayers(t))
	top := mustPull(t, s, numbered("image", 2))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ms, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer ms.Close()
	err = ms.WithTransaction(t.Context(), false, func(ctx context.Context) error {
		_, info, usage, err := storage.GetInfo(ctx, top)
		if err == nil && (info.Kind != snapshots.KindCommitted || usage.Size != 1<<20) {
			t.Errorf("info %v, usage %v", info, usage)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
