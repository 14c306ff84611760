package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// fakeLayers serves layers as directories, each with one file of its own and one that all layers
// have.
type fakeLayers struct {
	dir    string
	starts atomic.Int32 // calls of Starting

	mu      sync.Mutex
	mounted map[digest.Digest]int // calls of Mount that worked, since the last Remove
	calls   []call
	removed []digest.Digest
	// may replace what Mount does: ok when it returns errDefault
	onMount func(ctx context.Context, l Layer) (Mounted, error)
	// layers that are not proved, and the references that are believed
	words   map[digest.Digest]map[string]bool
	false   map[digest.Digest]bool          // layers whose proof fails
	proofs  []digest.Digest                 // calls of Prove
	diffIDs map[digest.Digest]digest.Digest // what Mount says of them
}

type call struct {
	Layer
	below []Below
}

var errDefault = errors.New("as usual")

var _ Layers = (*fakeLayers)(nil)

func newFakeLayers(t *testing.T) *fakeLayers {
	return &fakeLayers{dir: t.TempDir(), mounted: map[digest.Digest]int{}}
}

func (f *fakeLayers) path(d digest.Digest) string { return filepath.Join(f.dir, d.Encoded()[:8]) }

func (f *fakeLayers) Mount(ctx context.Context, l Layer, below []Below) (Mounted, error) {
	f.mu.Lock()
	f.calls = append(f.calls, call{l, below})
	hook := f.onMount
	f.mu.Unlock()
	if hook != nil {
		if m, err := hook(ctx, l); !errors.Is(err, errDefault) {
			return m, err
		}
	}
	dir := f.path(l.Digest)
	for name, content := range map[string]string{"all": l.Digest.String(),
		l.Digest.Encoded()[:8]: "own"} {
		if err := errors.Join(os.MkdirAll(dir, 0o755),
			os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)); err != nil {
			return Mounted{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted[l.Digest]++
	return Mounted{Dir: dir, DiffID: f.diffIDs[l.Digest], Size: 1 << 20, Inodes: 3}, nil
}

func (f *fakeLayers) Promise(context.Context, Layer, []Below) (Mounted, bool) {
	return Mounted{}, false
}

func (f *fakeLayers) Starting(string, Layer) { f.starts.Add(1) }

func (f *fakeLayers) Displaced(dirs []string) []string {
	return slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool {
		_, err := os.Stat(dir)
		return err == nil
	})
}

func (f *fakeLayers) Remove(_ context.Context, d digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = append(f.removed, d)
	delete(f.mounted, d)
	return os.RemoveAll(f.path(d))
}

func (f *fakeLayers) Trust(l Layer) (proved, forged bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.words[l.Digest] == nil, false
}

func (f *fakeLayers) Vouched(_ context.Context, l Layer) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.words[l.Digest][l.Ref], nil
}

func (f *fakeLayers) Prove(_ context.Context, d digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proofs = append(f.proofs, d)
	if f.false[d] {
		return ErrDisproved
	}
	delete(f.words, d)
	return nil
}

// hook sets what Mount does first.
func (f *fakeLayers) hook(fn func(ctx context.Context, l Layer) (Mounted, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onMount = fn
}

// restart forgets all mounts, as a new process does.
func (f *fakeLayers) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted, f.calls, f.removed, f.onMount = map[digest.Digest]int{}, nil, nil, nil
}

func (f *fakeLayers) isMounted(d digest.Digest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mounted[d] > 0
}

func (f *fakeLayers) mountCalls() []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeLayers) removals() []digest.Digest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.removed)
}

// testImage is an image's layers, lowest first.
type testImage struct {
	ref     string
	layers  []digest.Digest
	diffIDs []digest.Digest
	chains  []digest.Digest
}

// imageOf returns an image with a layer for each name. Images share the layers of the same name.
func imageOf(ref string, names ...string) testImage {
	img := testImage{ref: ref}
	for _, name := range names {
		img.layers = append(img.layers, digest.FromString("blob "+name))
		img.diffIDs = append(img.diffIDs, digest.FromString("tar "+name))
	}
	img.chains = identity.ChainIDs(slices.Clone(img.diffIDs))
	return img
}

// numbered returns an image with n layers.
func numbered(ref string, n int) testImage {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("%s %d", ref, i))
	}
	return imageOf(ref, names...)
}

// labels are those with which containerd prepares layer i.
func (img testImage) labels(i int) map[string]string {
	var list []string
	for _, d := range img.layers[i:] {
		list = append(list, d.String())
	}
	return map[string]string{
		snapshots.LabelSnapshotRef:             img.chains[i].String(),
		snapshots.LabelSnapshotDiffID:          img.diffIDs[i].String(),
		snapshotters.TargetRefLabel:            img.ref,
		snapshotters.TargetManifestDigestLabel: img.manifest().String(),
		snapshotters.TargetLayerDigestLabel:    img.layers[i].String(),
		snapshotters.TargetImageLayersLabel:    strings.Join(list, ","),
	}
}

func (img testImage) manifest() digest.Digest { return digest.FromString("manifest " + img.ref) }

// open returns an opened snapshotter below root that is closed at the end of the test.
func open(t *testing.T, root string, layers Layers, options ...Option) *Snapshotter {
	t.Helper()
	s := New(root, layers,
		append([]Option{WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))}, options...)...)
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// pull does with a snapshotter what containerd's metadata and unpacker do when they pull an image,
// and returns the name of the topmost snapshot, and how many layers were unpacked.
func pull(
	ctx context.Context, s snapshots.Snapshotter, img testImage,
) (top string, unpacked int, err error) {
	for i := range img.layers {
		key := fmt.Sprintf("extract-%s-%d", img.ref, i)
		name, fetched, err := pullLayer(ctx, s, key, top, img.labels(i))
		if err != nil {
			return "", unpacked, fmt.Errorf("layer %d: %w", i, err)
		}
		if fetched {
			unpacked++
		}
		top = name
	}
	return top, unpacked, nil
}

// pullLayer prepares one layer, and unpacks it if it has to.
func pullLayer(
	ctx context.Context, s snapshots.Snapshotter, key, parent string, labels map[string]string,
) (name string, unpacked bool, err error) {
	target := labels[snapshots.LabelSnapshotRef]
	mounts, err := s.Prepare(ctx, key, parent, snapshots.WithLabels(labels))
	if err == nil {
		for _, m := range mounts {
			if m.ReadOnly() {
				return "", true, fmt.Errorf("mount %v is read-only: containerd takes the layer "+
					"for unpacked", m)
			}
		}
		name = "unpacked " + target + " on " + parent
		return name, true, s.Commit(ctx, name, key, snapshots.WithLabels(labels))
	}
	if !errdefs.IsAlreadyExists(err) {
		return "", false, err
	}
	filter := fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, target, parent)
	err = s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted && name == "" {
			name = info.Name
		}
		return nil
	}, filter)
	if err == nil && name == "" {
		err = fmt.Errorf("no snapshot matches %s", filter)
	}
	return name, false, err
}

// mustPull pulls an image of which all layers must be served.
func mustPull(t *testing.T, s snapshots.Snapshotter, img testImage) string {
	t.Helper()
	top, unpacked, err := pull(t.Context(), s, img)
	if err != nil || unpacked != 0 {
		t.Fatalf("pull %s: %d layers unpacked, err %v", img.ref, unpacked, err)
	}
	return top
}
