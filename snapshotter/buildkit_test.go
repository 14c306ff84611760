package snapshotter

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
)

// extract does what BuildKit does with an image that is not pulled: cache/refs.go,
// prepareRemoteSnapshotsStargzMode. It returns the topmost snapshot, and how many layers are there.
func extract(
	ctx context.Context, t *testing.T, s snapshots.Snapshotter, img testImage,
) (top string, served int) {
	t.Helper()
	for i, chain := range img.chains {
		temporary := "containerd.io/snapshot/remote/stargz.digest.x1"
		_, err := s.Prepare(ctx, fmt.Sprintf("tmp-x%d %s", i, chain), top,
			snapshots.WithLabels(map[string]string{
				snapshots.LabelSnapshotRef:                    chain.String(),
				snapshotters.TargetRefLabel:                   img.ref,
				"containerd.io/snapshot/remote/stargz.digest": img.layers[i].String(),
				temporary: img.layers[i].String(),
			}))
		if err == nil {
			return top, served
		}
		if !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		info, err := s.Stat(ctx, chain.String())
		if err != nil {
			t.Fatalf("layer %d is not there: %v", i, err)
		}
		info.Labels[temporary] = ""
		if _, err := s.Update(ctx, info, "labels."+temporary); err != nil {
			t.Fatal(err)
		}
		top, served = chain.String(), served+1
	}
	return top, served
}

// TestBuildKit: BuildKit's plugin serves the layers of an image that has no name, and its snapshots
// and containerd's others do not meet, whatever the names and however often is collected; a layer
// goes when neither needs it.
func TestBuildKit(t *testing.T) {
	layers := newFakeLayers(t)
	img := imageOf("localhost:5000/base:1", "base", "app")
	layers.word(img, img.ref) // not proved: only its own repository vouches for it
	images := &fakeImages{all: []Image{img.image()}}
	s := open(t, t.TempDir(), layers, WithImages(images))
	db := openContainerd(t, s)
	leased, release := db.lease(t, "ns")
	built := db.DB.Snapshotter("stargz")

	top, served := extract(leased, t, built, img)
	want := Scope{Namespace: "ns", Unnamed: true, Known: []string{img.ref}}
	if served != 2 || images.in.Namespace != want.Namespace || !images.in.Unnamed ||
		!slices.Equal(images.in.Known, want.Known) {
		t.Fatalf("%d layers served, of %+v", served, images.in)
	}
	mounts, err := built.Prepare(leased, "run", top)
	if err != nil || len(mounts) != 1 || mounts[0].Type != "overlay" {
		t.Fatalf("%v, %v", mounts, err)
	}
	if !images.in.Unnamed || len(layers.proofs) != 0 {
		t.Errorf("proved: %v, for %+v", layers.proofs, images.in)
	}
	parse(t, mounts[0].Options)
	if err := built.Commit(leased, "result", "run"); err != nil {
		t.Fatal(err)
	}
	if mounts, err = built.View(leased, "view", "result"); err != nil {
		t.Fatal(err)
	}
	parse(t, mounts[0].Options)
	if err := built.Remove(leased, "view"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Stat(leased, top); !errdefs.IsNotFound(err) {
		t.Errorf("mica's plugin has BuildKit's snapshot: %v", err)
	}
	images.in = Scope{}
	if n, err := db.pull(leased, "p", img); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if images.in.Unnamed {
		t.Error("a pull is asked for images without a name")
	}

	names := func(s snapshots.Snapshotter) (names []string) {
		t.Helper()
		if err := s.Walk(leased, func(_ context.Context, i snapshots.Info) error {
			names = append(names, i.Name+" on "+i.Parent)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return names
	}
	db.collect(t)
	before := [][]string{names(s), names(s.BuildKit())}
	db.collect(t)
	if after := [][]string{names(s), names(s.BuildKit())}; len(before[0]) != 2 ||
		len(before[1]) != 3 || !slices.Equal(before[0], after[0]) ||
		!slices.Equal(before[1], after[1]) {
		t.Errorf("snapshots %q, and %q after a collection", before, after)
	}
	manager := metadata.NewLeaseManager(db.DB)
	ns := namespaces.WithNamespace(t.Context(), "ns")
	all, err := manager.ListResources(ns, leaseOf(leased, t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Type == "snapshots/mica" {
			if err := manager.DeleteResource(ns, leaseOf(leased, t), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	db.collect(t)
	if n := names(s); len(n) != 0 || len(layers.removals()) != 0 {
		t.Errorf("%q are left, and removed %v, which BuildKit needs", n, layers.removals())
	}
	release()
	db.collect(t)
	if n := names(s.BuildKit()); len(n) != 0 || len(layers.removals()) != 2 {
		t.Errorf("%q are left, and removed %v", n, layers.removals())
	}
}

// parse finds layers in overlay's options as BuildKit does: util/overlay, GetOverlayLayers.
func parse(t *testing.T, options []string) {
	t.Helper()
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch {
		case name == "workdir", name == "redirect_dir", name == "userxattr", o == "index=off":
		case (name == "upperdir" || name == "lowerdir") && !strings.Contains(value, ","):
		default:
			t.Errorf("BuildKit does not know the option %q of %q", o, options)
		}
	}
}

// leaseOf is the lease of a context.
func leaseOf(ctx context.Context, t *testing.T) leases.Lease {
	t.Helper()
	id, ok := leases.FromContext(ctx)
	if !ok {
		t.Fatal("no lease")
	}
	return leases.Lease{ID: id}
}
