package sametree

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index/tartree/tartreetest"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

var (
	seeds = flag.Int("seeds", 100, "random images to compare")
	seed  = flag.Uint64("seed", 1, "the first one's")
)

// TestRandomImages compares images that are made up from seeds, as a whole and layer by layer.
// What is known to differ is in docs/limits.md: times of directories that no entry names.
func TestRandomImages(t *testing.T) {
	r := fixture.Referrers(t)
	var subjects []random
	for s := *seed; s < *seed+uint64(*seeds); s++ {
		tars, err := randomImage(s)
		if err != nil {
			t.Fatalf("seed %d: %v", s, err)
		}
		subjects = append(subjects, random{name: fmt.Sprint("seed", s), tars: tars})
	}
	compareRandom(t, r, subjects)
}

// random is an image, and how containerd shows it.
type random struct {
	name string
	tars [][]byte // lowest first
	// apart: only its layers are compared, because overlayfs lists whiteouts that hide nothing.
	apart   bool
	img     v1.Image
	ref     string
	refused error // by containerd
	whole   tartreetest.Listing
	layers  []tartreetest.Listing // lowest first
}

// compareRandom compares, and returns the images that containerd unpacks.
func compareRandom(t *testing.T, r *registry.Registry, subjects []random) []random {
	start := time.Now()
	plain := newUnpacker(t, fixture.Node(t, node.Options{NoMicad: true}), "overlayfs")
	each(subjects, func(s *random) {
		if err := plain.expect(t, s, start); err != nil {
			s.refused = err
			if !errors.As(err, new(*applyError)) {
				t.Errorf("%s through overlayfs: %v", s.name, err)
			}
			return
		}
		if err := s.push(t, r); err != nil {
			t.Errorf("%s: %v", s.name, err)
			s.refused = err
		}
	})
	accepted := slices.DeleteFunc(subjects, func(s random) bool { return s.refused != nil })
	if len(accepted)*2 < len(subjects) {
		t.Fatalf("containerd unpacks %d of %d images: the generator is of no use: %v", len(accepted),
			len(subjects), subjects[0].refused)
	}
	t.Logf("%d of %d images are unpacked by containerd", len(accepted), len(subjects))
	for _, mode := range []string{"erofs", "fuse", "local"} {
		t.Run(mode, func(t *testing.T) {
			u := newUnpacker(t, fixture.Node(t, node.Options{Mode: mode}), node.Snapshotter)
			var differ atomic.Int64
			each(accepted, func(s *random) {
				diff, err := u.compare(t, s)
				if err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
				if len(diff) == 0 {
					return
				}
				if differ.Add(1) == 1 { // the others have the same cause, for the most part
					s, diff = shrink(t, r, plain, u, s, diff)
				}
				t.Errorf("%s: %d layers, %d differences from overlayfs:\n%s\n%s",
					s.name, len(s.tars), len(diff), strings.Join(diff[:min(len(diff), 20)], "\n"),
					contents(s.tars))
			})
			t.Logf("%d of %d differ, %d layers were left to containerd", differ.Load(), len(accepted),
				u.ordinary.Load())
		})
	}
	return accepted
}

// expect notes what is to be seen of an image.
func (u *unpacker) expect(t *testing.T, s *random, start time.Time) error {
	shown, err := u.show(t, s, nil)
	if err != nil {
		return err
	}
	s.whole, s.layers = shown.whole, shown.layers
	s.whole.UnpackedSince(start)
	for _, l := range s.layers {
		l.UnpackedSince(start)
	}
	return nil
}

// compare returns how what is to be seen differs from what is expected.
func (u *unpacker) compare(t *testing.T, s *random) ([]string, error) {
	shown, err := u.show(t, s, s.labels())
	if err != nil {
		return nil, err
	}
	var diff []string
	if !s.apart {
		diff = tartreetest.Diff(s.whole, shown.whole)
	}
	if len(shown.layers) != len(s.layers) {
		return append(diff, fmt.Sprintf("%d layers, want %d", len(shown.layers), len(s.layers))), nil
	}
	for i := range s.layers {
		for _, d := range tartreetest.Diff(s.layers[i], shown.layers[i]) {
			diff = append(diff, fmt.Sprintf("layer %d: %s", i, d))
		}
	}
	return diff, nil
}

// shrink leaves layers out of an image as long as it differs.
func shrink(t *testing.T, r *registry.Registry, plain, u *unpacker, s *random,
	diff []string) (*random, []string) {
	for i := 0; i < len(s.tars) && len(s.tars) > 1; {
		less := &random{name: s.name + "-" + fmt.Sprint(i), apart: s.apart,
			tars: slices.Delete(slices.Clone(s.tars), i, i+1)}
		err := plain.expect(t, less, time.Now())
		if err == nil {
			err = less.push(t, r)
		}
		var d []string
		if err == nil {
			d, err = u.compare(t, less)
		}
		if err != nil || len(d) == 0 {
			i++
			continue
		}
		s, diff, i = less, d, 0
	}
	return s, diff
}

// each calls f for all subjects, some at a time.
func each(subjects []random, f func(*random)) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, 3)
	for i := range subjects {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			f(&subjects[i])
		})
	}
	wg.Wait()
}

// push pushes the image and its index.
func (s *random) push(t *testing.T, r *registry.Registry) (err error) {
	if s.img, err = images.FromTars([]string{"/none"}, s.tars...); err != nil {
		return err
	}
	if err := images.Push(fixture.Context(t), fixture.Direct(r, s.name), s.img); err != nil {
		return err
	}
	s.ref = fmt.Sprintf("%s/%s:test", r.Host(), s.name)
	_, err = node.Command(fixture.Context(t), "mica", "index", "create", "--push", fixture.Direct(r,
		s.name))
	return err
}

// labels returns what containerd tells a snapshotter of each layer when it pulls the image,
// lowest first.
func (s *random) labels() []map[string]string {
	m, err := s.img.Manifest()
	if err != nil {
		panic(err) // it is in memory
	}
	d, err := s.img.Digest()
	if err != nil {
		panic(err)
	}
	var all []map[string]string
	for i, l := range m.Layers {
		var above []string
		for _, l := range m.Layers[i:min(len(m.Layers), i+50)] { // containerd cuts a long list, too
			above = append(above, l.Digest.String())
		}
		all = append(all, map[string]string{
			snapshotters.TargetRefLabel:            s.ref,
			snapshotters.TargetManifestDigestLabel: d.String(),
			snapshotters.TargetLayerDigestLabel:    l.Digest.String(),
			snapshotters.TargetImageLayersLabel:    strings.Join(above, ","),
		})
	}
	return all
}

// contents lists the entries of tars, for a person.
func contents(tars [][]byte) string {
	var b strings.Builder
	for i, t := range tars {
		fmt.Fprintf(&b, "layer %d, %s:\n", i, digest.FromBytes(t).Encoded()[:8])
		describe(&b, bytes.NewReader(t))
	}
	return b.String()
}

// unpacker pulls images by a snapshotter as containerd does, but for the transport.
type unpacker struct {
	ctx         context.Context
	dir         string
	snapshotter snapshots.Snapshotter
	ordinary    atomic.Int64 // layers that were unpacked although they had labels
}

func newUnpacker(t *testing.T, n *node.Node, snapshotter string) *unpacker {
	t.Helper()
	var client *containerd.Client
	client, err := n.Client()
	if err != nil {
		t.Fatal(err)
	}
	ctx, done, err := client.WithLease(namespaces.WithNamespace(fixture.Context(t), n.Namespace()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := done(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	return &unpacker{ctx: ctx, dir: n.Dir, snapshotter: client.SnapshotService(snapshotter)}
}

// applyError is containerd's, of a layer that it does not unpack.
type applyError struct{ err error }

func (e *applyError) Error() string { return e.err.Error() }

// shown is what is to be seen of an image.
type shown struct {
	whole  tartreetest.Listing
	layers []tartreetest.Listing // lowest first
}

// show unpacks an image, unless the snapshotter has its layers, and lists what is to be seen.
func (u *unpacker) show(t *testing.T, s *random, labels []map[string]string) (shown, error) {
	parent := ""
	var diffIDs []digest.Digest
	for i, tar := range s.tars {
		diffIDs = append(diffIDs, digest.FromBytes(tar))
		chain := identity.ChainID(diffIDs).String()
		l := map[string]string{snapshots.LabelSnapshotRef: chain}
		if labels != nil {
			for k, v := range labels[i] {
				l[k] = v
			}
		}
		key := fmt.Sprintf("extract-%s-%d %s", s.name, i, chain)
		mounts, err := u.snapshotter.Prepare(u.ctx, key, parent, snapshots.WithLabels(l))
		parent = chain
		if errdefs.IsAlreadyExists(err) {
			continue
		}
		if err == nil && labels != nil {
			u.ordinary.Add(1)
		}
		if err == nil {
			err = unpack(u.ctx, mounts, tar)
		}
		if err == nil {
			err = u.snapshotter.Commit(u.ctx, chain, key, snapshots.WithLabels(l))
		}
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return shown{}, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if err := u.write(t, s.name, parent); err != nil {
		return shown{}, fmt.Errorf("a container's snapshot: %w", err)
	}
	key := "view of " + s.name
	mounts, err := u.snapshotter.View(u.ctx, key, parent)
	if err != nil {
		return shown{}, err
	}
	defer u.remove(t, key)
	return u.list(t, mounts)
}

func (u *unpacker) remove(t *testing.T, key string) {
	if err := u.snapshotter.Remove(u.ctx, key); err != nil {
		t.Error(err)
	}
}

// write writes into a snapshot on the image, as a container does.
func (u *unpacker) write(t *testing.T, name, parent string) error {
	key := "container of " + name
	mounts, err := u.snapshotter.Prepare(u.ctx, key, parent)
	if err != nil {
		return err
	}
	defer u.remove(t, key)
	return u.mounted(mounts, func(dir string) error {
		file := filepath.Join(dir, "written")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return err
		}
		var root, st unix.Stat_t
		if err := errors.Join(unix.Lstat(dir, &root), unix.Lstat(file, &st)); err != nil {
			return err
		}
		if root.Dev != st.Dev {
			return fmt.Errorf("a new file is on device %#x, the root on %#x", st.Dev, root.Dev)
		}
		return nil
	})
}

// mounted calls f while the mounts are at a directory. They are served by others than this process.
func (u *unpacker) mounted(mounts []mount.Mount, f func(dir string) error) error {
	dir, err := os.MkdirTemp(u.dir, "view")
	if err != nil {
		return err
	}
	if err := mount.All(mounts, dir); err != nil {
		return errors.Join(fmt.Errorf("mount %v: %w", mounts, err), os.Remove(dir))
	}
	return errors.Join(f(dir), mount.UnmountAll(dir, 0), os.Remove(dir))
}

// list lists the whole and its layers.
func (u *unpacker) list(t *testing.T, mounts []mount.Mount) (s shown, err error) {
	err = u.mounted(mounts, func(dir string) (err error) {
		s.whole, err = tartreetest.List(dir)
		return err
	})
	if err != nil {
		return shown{}, err
	}
	for _, dir := range fixture.Lower(t, mounts) {
		l, err := tartreetest.List(dir)
		if err != nil {
			return shown{}, err
		}
		s.layers = append(s.layers, l)
	}
	return s, nil
}

// unpack has containerd's own code unpack a tar.
func unpack(ctx context.Context, mounts []mount.Mount, tar []byte) error {
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer,
		Digest: digest.FromBytes(tar), Size: int64(len(tar))}
	if _, err := apply.NewFileSystemApplier(inMemory(tar)).Apply(ctx, desc, mounts); err != nil {
		return &applyError{err}
	}
	return nil
}

// inMemory is a content store with one blob.
type inMemory []byte

// ReaderAt implements content.Provider.
func (b inMemory) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return blob{bytes.NewReader(b)}, nil
}

type blob struct{ *bytes.Reader }

// Close implements content.ReaderAt.
func (blob) Close() error { return nil }
