package fs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	cr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/index/targz"
	"github.com/mica-snapshotter/mica/remote"
)

// readEnv makes the test binary list a tree instead of testing: a mount is never read by the
// process that serves it.
const readEnv = "MICA_FS_TEST_READ"

func TestMain(m *testing.M) {
	if ran, err := erofs.RunChild(os.Args[1:], os.Stdin, os.Stdout); ran {
		if err != nil {
			log.Fatal(err)
		}
		return
	}
	if path := os.Getenv(keepEnv); path != "" {
		if err := keep(path); err != nil {
			log.Fatal(err)
		}
		return
	}
	if dir := os.Getenv(readEnv); dir != "" {
		if err := list(os.Stdout, dir); err != nil {
			log.Fatal(err)
		}
		return
	}
	os.Exit(m.Run())
}

// list writes a line for each file below dir: path, mode, and the digest of regular files.
func list(w io.Writer, dir string) error {
	return filepath.WalkDir(dir, func(path string, e iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		sum := ""
		if st.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum = fmt.Sprintf("%x", sha256.Sum256(b))
		}
		rel, _ := filepath.Rel(dir, path)
		_, err = fmt.Fprintln(w, rel, st.Mode(), sum)
		return err
	})
}

// readTree lists a tree in a child process.
func readTree(t *testing.T, dir string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), readEnv+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("read %s: %v\n%s", dir, err, out)
	}
	return string(out)
}

// entry is a file of a layer.
type entry struct {
	name string
	mode int64
	data []byte
}

// compressible makes n bytes that gzip shrinks, differently for each seed.
func compressible(seed, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of file %d, %x\n", i, seed,
			sha256.Sum256(fmt.Append(nil, seed, i)))
	}
	return b.Bytes()[:n]
}

// layerOf makes a gzip layer and what a listing of it has to be.
func layerOf(t *testing.T, files ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)),
			Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []io.Closer{w, z} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// world is a registry with one image.
type world struct {
	t        *testing.T
	ref      string
	manifest digest.Digest
	layers   []digest.Digest // lowest first
	diffIDs  []digest.Digest
	blobs    [][]byte
	trees    []byte         // of the index, once it is pushed
	indexed  artifact.Index // the same
	broken   atomic.Bool    // the registry answers nothing
	fetched  atomic.Int64   // bytes of layers' blobs that were sent
	told     []artifact.Layer
	tell     bool                              // index tells of the layers
	gate     atomic.Pointer[func(path string)] // called before a request is answered
	// odd may answer a request in place of the registry, and says whether it has.
	odd  atomic.Pointer[func(rw http.ResponseWriter, r *http.Request) bool]
	asks time.Duration // how long the registry is asked for an index; 0: as long as ever
}

func newWorld(t *testing.T, blobs ...[]byte) *world {
	t.Helper()
	w := &world{t: t, blobs: blobs}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)),
		registry.WithReferrersSupport(true))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if gate := w.gate.Load(); gate != nil {
			(*gate)(r.URL.Path)
		}
		if odd := w.odd.Load(); odd != nil && (*odd)(rw, r) {
			return
		}
		if w.broken.Load() {
			http.Error(rw, "out of order", http.StatusServiceUnavailable)
			return
		}
		c := &countingWriter{ResponseWriter: rw}
		inner.ServeHTTP(c, r)
		for _, l := range w.layers {
			if strings.HasSuffix(r.URL.Path, l.String()) && r.Method == http.MethodGet {
				w.fetched.Add(c.n)
			}
		}
	}))
	t.Cleanup(server.Close)
	w.ref = strings.TrimPrefix(server.URL, "http://") + "/test/image:latest"
	w.push(empty.Image)
	return w
}

type countingWriter struct {
	http.ResponseWriter
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

func (w *world) push(im v1.Image) {
	w.t.Helper()
	for _, blob := range w.blobs {
		l := rawLayer(blob)
		d, _ := l.Digest()
		diff, _ := l.DiffID()
		w.layers, w.diffIDs = append(w.layers, digest.Digest(d.String())), append(w.diffIDs,
			digest.Digest(diff.String()))
		var err error
		if im, err = mutate.AppendLayers(im, l); err != nil {
			w.t.Fatal(err)
		}
	}
	ref, err := name.ParseReference(w.ref)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cr.Write(ref, im); err != nil {
		w.t.Fatal(err)
	}
	d, err := im.Digest()
	if err != nil {
		w.t.Fatal(err)
	}
	w.manifest = digest.Digest(d.String())
}

func (w *world) client() *remote.Client {
	w.t.Helper()
	c, err := remote.New(remote.Config{
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, ListTimeout: w.asks,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// index pushes the image's index. With forge, the index is changed before.
func (w *world) index(forge func(*index.Draft)) {
	w.t.Helper()
	var in []bundle.Input
	for _, blob := range w.blobs {
		var windows, file bytes.Buffer
		d, err := targz.Scan(w.t.Context(), bytes.NewReader(blob),
			targz.Options{Windows: &windows, SpanSize: 64 << 10})
		if errors.Is(err, targz.ErrNotIndexable) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if forge != nil {
			forge(d)
		}
		if _, err := index.Write(&file, d); err != nil {
			w.t.Fatal(err)
		}
		if w.tell {
			x, err := index.Open(bytes.NewReader(file.Bytes()), int64(file.Len()))
			if err != nil {
				w.t.Fatal(err)
			}
			if l, ok, err := artifact.Tell(x); err != nil {
				w.t.Fatal(err)
			} else if ok {
				w.told = append(w.told, l)
			}
		}
		in = append(in,
			bundle.Input{Index: bytes.NewReader(file.Bytes()), Size: int64(file.Len()),
				Windows: &windows})
	}
	var trees, windows bytes.Buffer
	if err := bundle.Write(&trees, &windows, in); err != nil {
		w.t.Fatal(err)
	}
	im, err := w.client().Image(w.ref)
	if err != nil {
		w.t.Fatal(err)
	}
	x := artifact.New(digest.FromBytes(trees.Bytes()), int64(trees.Len()),
		digest.FromBytes(windows.Bytes()), int64(windows.Len()))
	x.Layers = w.told
	w.trees, w.indexed = trees.Bytes(), x
	for d, b := range map[*ocispec.Descriptor][]byte{&x.Trees: trees.Bytes(),
		&x.Windows: windows.Bytes(), &ocispec.DescriptorEmptyJSON: []byte("{}")} {
		if err := im.PushBlob(w.t.Context(), *d, bytes.NewReader(b)); err != nil {
			w.t.Fatal(err)
		}
	}
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: w.manifest,
		Size: 1}
	if _, err := im.PushReferrer(w.t.Context(), subject,
		x.Manifest(subject, time.Now())); err != nil {
		w.t.Fatal(err)
	}
}

// layer is what Mount is asked for.
func (w *world) layer(i int) Layer {
	return Layer{Ref: w.ref, Manifest: w.manifest, Digest: w.layers[i], DiffID: w.diffIDs[i],
		Image: w.layers[i:]}
}

// probed is what the kernel can do, probed once for all tables: it takes longer than most tests.
var probed = sync.OnceValues(func() (s erofs.Support, err error) {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return erofs.Probe(context.Background(), dir)
})

// open opens a table that fetches nothing by itself; it is closed, and its mounts taken away, when
// the test ends.
func (w *world) open(root string, mode Mode) *Table {
	w.t.Helper()
	return w.openWith(Options{Root: root, Mode: mode, Fetch: fetch.Options{Fill: fetch.None}})
}

func (w *world) openWith(o Options) *Table {
	w.t.Helper()
	o.Remote, o.PullDeadline = w.client(), 5*time.Second
	o.probe = func(context.Context, string) (erofs.Support, error) { return probed() }
	if o.ReadDeadline == 0 {
		o.ReadDeadline = 30 * time.Second
	}
	t, err := Open(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := t.Close(); err != nil {
			w.t.Error(err)
		}
		for _, l := range w.layers {
			if err := t.clearMounts(l); err != nil {
				w.t.Error(err)
			}
		}
	})
	return t
}

// mountAll mounts the image's layers as containerd asks for them, and returns the directories,
// lowest first.
func (w *world) mountAll(t *Table) []string {
	w.t.Helper()
	var below []Below
	var dirs []string
	for i := range w.layers {
		m, err := t.Mount(w.t.Context(), w.layer(i), below)
		if err != nil {
			w.t.Fatal(err)
		}
		if m.DiffID != w.diffIDs[i] {
			w.t.Errorf("layer %d: diffID %s, want %s", i, m.DiffID, w.diffIDs[i])
		}
		dirs = append(dirs, m.Dir)
		below = slices.Insert(below, 0, Below{Digest: w.layers[i], Dir: m.Dir})
	}
	return dirs
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

var (
	bigFile   = compressible(1, 700<<10)
	smallFile = []byte("small\n")
)

func twoLayers(t *testing.T) [][]byte {
	return [][]byte{
		layerOf(t, entry{"etc/", 0o755, nil}, entry{"tmp/", 0o1777, nil},
			entry{"etc/big", 0o644, bigFile}, entry{"etc/other", 0o600, compressible(2, 600<<10)}),
		layerOf(t, entry{"tmp/sub/small", 0o644, smallFile}),
	}
}

func TestModes(t *testing.T) {
	for _, mode := range []Mode{EROFS, FUSE, Local, Auto} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			table := w.open(testDir(t), mode)
			dirs := w.mountAll(table)
			if mode != Local {
				if n := w.fetched.Load(); n != 0 {
					t.Errorf("%d bytes of layers were fetched before anything was read", n)
				}
			}
			for want, dir := range map[string]string{"etc/big -rw-r--r-- " + sum(bigFile): dirs[0],
				"tmp/sub/small -rw-r--r-- " + sum(smallFile): dirs[1]} {
				if got := readTree(t, dir); !strings.Contains(got, want) {
					t.Errorf("%s: no %q in\n%s", dir, want, got)
				}
			}
			if got := readTree(t, dirs[1]); !strings.Contains(got, "tmp dtrwxrwxrwx") {
				t.Errorf("the directory that the upper tar does not mention lost its sticky "+
					"bit:\n%s", got)
			}
			for _, s := range table.Status() {
				if mode != Auto && s.Mode != mode {
					t.Errorf("layer %s is served in mode %s, want %s", s.Layer, s.Mode, mode)
				}
				if s.Present != s.Total {
					t.Errorf("layer %s: %d of %d bytes present after reading all", s.Layer,
						s.Present, s.Total)
				}
			}
		})
	}
}

func TestCompleteLayerGoesLocal(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	table := w.open(testDir(t), Auto)
	dirs := w.mountAll(table)
	before := readTree(t, dirs[0])
	readTree(t, dirs[1])
	eventually(t, "layers that were read whole are local", func() bool {
		return table.Status()[0].Mode == Local && table.Status()[1].Mode == Local
	})
	w.broken.Store(true)
	if after := readTree(t, dirs[0]); after != before {
		t.Errorf("the layer changed when it became local:\n%s\nbefore:\n%s", after, before)
	}
}

// A fill makes layers whole that nobody reads; a recorded start is what the next pull replays.
func TestFillAndReplay(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	profiles := profile.NewDir(testDir(t))
	filled := w.openWith(Options{Root: testDir(t), Mode: Auto, Profiles: profiles,
		RecordTime: time.Second})
	dirs := w.mountAll(filled)
	eventually(t, "layers are whole and local", func() bool {
		all := filled.Status()
		return all[0].Mode == Local && all[1].Mode == Local
	})
	if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
		t.Errorf("wrong content after the fill:\n%s", got)
	}

	first := w.openWith(Options{Root: testDir(t), Mode: EROFS, Profiles: profiles,
		RecordTime: time.Second, Fetch: fetch.Options{Fill: fetch.None}})
	readTree(t, w.mountAll(first)[0])
	eventually(t, "the start was recorded", func() bool {
		p, err := profiles.Load(w.manifest)
		return err == nil && len(p.Ranges) > 0
	})

	w.fetched.Store(0)
	second := w.openWith(Options{Root: testDir(t), Mode: EROFS, Profiles: profiles,
		Fetch: fetch.Options{Fill: fetch.Profile}})
	dirs = w.mountAll(second)
	eventually(t, "the profile was replayed before anything was read", func() bool {
		all := second.Replays()
		return len(all) == 1 && all[0].Finished && all[0].Brought > 0
	})
	before := w.fetched.Load()
	readTree(t, dirs[0])
	if after := w.fetched.Load(); after != before {
		t.Errorf("%d bytes were fetched for reads that the profile has", after-before)
	}
	if r := second.Replays()[0]; r.Read != r.Brought || r.Missed != 0 {
		t.Errorf("replay brought %d bytes, %d of them were read, %d reads missed", r.Brought,
			r.Read, r.Missed)
	}

	for _, d := range slices.Backward(w.layers) {
		if err := second.Remove(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	w.mountAll(second)
	eventually(t, "the profile was replayed again for an image that had been removed", func() bool {
		all := second.Replays()
		return len(all) == 2 && all[0].Finished && all[0].Brought == all[1].Brought
	})
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

func TestNoIndex(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	table := w.open(testDir(t), Auto)
	dirs := w.mountAll(table)
	var want int64
	for _, b := range w.blobs {
		want += int64(len(b))
	}
	if got := w.fetched.Load(); got != want {
		t.Errorf("fetched %d bytes of layers, want %d: each once", got, want)
	}
	if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
		t.Errorf("wrong content:\n%s", got)
	}
}

// An index that says something else than the layer must not reach a container.
func TestForgedIndex(t *testing.T) {
	for name, forge := range map[string]func(*index.Draft){
		"diffID": func(d *index.Draft) { d.DiffID = digest.FromString("other") },
		"span":   func(d *index.Draft) { d.Spans[0].Digest[3] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(forge)
			table := w.openWith(Options{Root: testDir(t), Mode: Auto,
				Fetch: fetch.Options{Fill: fetch.None}, ReadDeadline: time.Second})
			m, err := table.Mount(t.Context(), w.layer(0), nil)
			if name == "diffID" {
				if !errors.Is(err, ErrUnavailable) {
					t.Errorf("mounted a tar of digest %s, the image wants %s: %v", m.DiffID,
						w.diffIDs[0], err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), readEnv+"="+m.Dir)
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("a layer whose span digest is wrong could be read:\n%s", out)
			}
			if s := table.Status(); s[0].LastError == "" {
				t.Errorf("status shows no error: %+v", s)
			}
		})
	}
}

func TestRestart(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	root := testDir(t)
	first := w.open(root, EROFS)
	dirs := w.mountAll(first)
	before := []string{readTree(t, dirs[0]), readTree(t, dirs[1])}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	w.broken.Store(true)
	second := w.open(root, EROFS)
	again := w.mountAll(second)
	if !slices.Equal(dirs, again) {
		t.Errorf("mounted at %v after the restart, at %v before", again, dirs)
	}
	for i, dir := range again {
		if got := readTree(t, dir); got != before[i] {
			t.Errorf("layer %d changed over the restart:\n%s\nbefore:\n%s", i, got, before[i])
		}
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	root := testDir(t)
	table := w.open(root, Auto)
	dirs := w.mountAll(table)
	readTree(t, dirs[0])
	for _, d := range w.layers {
		for range 2 { // the second time there is nothing to remove
			if err := table.Remove(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
	}
	left := map[string]bool{}
	for _, pattern := range []string{"layers/*/*", "m/*", "dev/*", "tmp/*"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, f := range found {
			left[f] = true
		}
	}
	if len(left) > 0 {
		t.Errorf("left over: %v", slices.Collect(maps.Keys(left)))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), root) {
		t.Errorf("still mounted:\n%s", mounts)
	}
}

// A layer that was brought for a pull that nobody goes on with must not stay for ever.
func TestSweep(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	root := testDir(t)
	table := w.open(root, Auto)
	if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second layer is brought in advance", func() bool {
		return len(table.Status()) == 2
	})
	eventually(t, "the second layer is swept", func() bool { // the job may still be at the mount
		if err := table.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		left, err := table.store.Layers()
		if err != nil {
			t.Fatal(err)
		}
		return slices.Equal(left, w.layers[:1])
	})
	w.mountAll(table) // what was swept comes again
}

func TestUnavailable(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	table := w.open(testDir(t), Auto)
	l := w.layer(0)
	l.Digest = digest.FromString("no such layer")
	l.Image = nil
	for range 100 {
		if _, err := table.Mount(t.Context(), l, nil); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("layer that is not in the manifest: %v, want ErrUnavailable", err)
		}
		if len(table.pulls.Under()) > 0 {
			t.Fatal("who tries again gets the same error again")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := table.Mount(ctx, w.layer(1), nil); errors.Is(err, ErrUnavailable) ||
		!errors.Is(err, context.Canceled) {
		t.Errorf("cancelled call: %v, want context.Canceled alone: containerd must not pull "+
			"instead", err)
	}
}

// testDir is a directory on a filesystem that EROFS can be mounted from.
func testDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv("MICA_TEST_DIR"), "mica-fs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
