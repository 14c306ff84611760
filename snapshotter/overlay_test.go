package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
)

func mapping(uid, gid string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: uid, snapshots.LabelSnapshotGIDMapping: gid})
}

// TestSameAsOverlay does the same with containerd's overlay snapshotter: mounts, and the modes and
// owners of the directories, are equal.
func TestSameAsOverlay(t *testing.T) {
	type step func(ctx context.Context, s snapshots.Snapshotter) ([]mount.Mount, error)
	prepare := func(key, parent string, opts ...snapshots.Opt) step {
		return func(ctx context.Context, s snapshots.Snapshotter) ([]mount.Mount, error) {
			return s.Prepare(ctx, key, parent, opts...)
		}
	}
	view := func(key, parent string, opts ...snapshots.Opt) step {
		return func(ctx context.Context, s snapshots.Snapshotter) ([]mount.Mount, error) {
			return s.View(ctx, key, parent, opts...)
		}
	}
	commit := func(name, key string) step {
		return func(ctx context.Context, s snapshots.Snapshotter) ([]mount.Mount, error) {
			mounts, err := s.Mounts(ctx, key)
			return mounts, errors.Join(err, s.Commit(ctx, name, key))
		}
	}
	steps := []step{
		prepare("1", ""), commit("one", "1"),
		prepare("2", "one"), commit("two", "2"),
		prepare("3", "two"),
		prepare("3", "two"), // exists
		prepare("4", "gone"),
		prepare("5", "3"), // not committed
		view("none", ""), view("one view", "one"), view("two view", "two"),
		prepare("mapped bind", "", mapping("0:1000:10", "0:2000:10")),
		prepare("mapped", "two", mapping("0:1000:10,10:70000:5", "0:2000:10")),
		prepare("uid only", "two", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: "0:1000:10"})),
		commit("mapped committed", "mapped"),
		prepare("inherits the owner", "mapped committed"),
		view("mapped view", "one", mapping("0:1000:10", "0:2000:10")),
		prepare("no root in the mapping", "two", mapping("1:1000:10", "1:2000:10")),
		prepare("no mapping", "two", mapping("zero", "one")),
	}
	for _, remap := range []bool{false, true} {
		t.Run(fmt.Sprint("remap ", remap), func(t *testing.T) {
			options, theirs := []Option{WithMountOptions("volatile")}, []overlay.Opt{overlay.WithMountOptions([]string{"volatile"})}
			if remap {
				options, theirs = append(options, WithRemapIDs()), append(theirs,
					overlay.WithRemapIDs)
			}
			root, theirRoot := t.TempDir(), t.TempDir()
			s := open(t, root, &fakeLayers{}, options...)
			o, err := overlay.NewSnapshotter(theirRoot, theirs...)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			for i, step := range steps {
				got, err := step(t.Context(), s)
				want, wantErr := step(t.Context(), o)
				if (err == nil) != (wantErr == nil) {
					t.Errorf("step %d: error %v, containerd's %v", i, err, wantErr)
				}
				if got, want := fmt.Sprintf("%q", got), strings.ReplaceAll(fmt.Sprintf("%q", want),
					theirRoot, root); got != want {
					t.Errorf("step %d: mounts %s, containerd's %s", i, got, want)
				}
				if got, want := directories(t, root), directories(t, theirRoot); got != want {
					t.Errorf("step %d: directories\n%scontainerd's\n%s", i, got, want)
				}
			}
		})
	}
}

// directories lists the directories of snapshots with their modes and owners.
func directories(t *testing.T, root string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "snapshots", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, path := range paths {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %d:%d\n", strings.TrimPrefix(path, root), fi.Mode(), st.Uid, st.Gid)
	}
	return b.String()
}

// TestRemapIDs mounts a container with mapped IDs on layers that are mounts of their own, as real
// ones are.
func TestRemapIDs(t *testing.T) {
	layers := newFakeLayers(t)
	s := open(t, t.TempDir(), layers, WithRemapIDs())
	layers.hook(func(_ context.Context, l Layer) (Mounted, error) {
		dir := layers.path(l.Digest)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return Mounted{}, err
		}
		m := mount.Mount{Type: "tmpfs", Source: "tmpfs"}
		if err := m.Mount(dir); err != nil {
			return Mounted{}, err
		}
		t.Cleanup(func() {
			if err := mount.UnmountAll(dir, 0); err != nil {
				t.Errorf("unmount layer: %v", err)
			}
		})
		return Mounted{}, errDefault
	})
	for n := 1; n <= 3; n++ {
		img := numbered(fmt.Sprint("image-", n), n)
		top := mustPull(t, s, img)
		mounts, err := s.Prepare(t.Context(), fmt.Sprint("container-", n), top,
			mapping("0:100000:65536", "0:200000:65536"))
		if err != nil {
			t.Fatal(err)
		}
		dir := mountAt(t, mounts)
		if err := os.Chmod(filepath.Join(dir, "all"), 0o600); err != nil { // copies the file up
			t.Fatal(err)
		}
		for _, name := range []string{".", "all", img.layers[0].Encoded()[:8]} {
			fi, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if st := fi.Sys().(*syscall.Stat_t); st.Uid != 100000 || st.Gid != 200000 {
				t.Errorf("%d layers: %s belongs to %d:%d, want 100000:200000", n, name, st.Uid,
					st.Gid)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, root := range []string{"relative", t.TempDir() + "/a:b", t.TempDir() + "/a,b",
		t.TempDir() + "/a/../b"} {
		s := New(root, &fakeLayers{})
		if err := s.Open(t.Context()); err == nil || !strings.Contains(err.Error(), root) {
			t.Errorf("Open(%s) = %v", root, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close after that: %v", err)
		}
	}
}
