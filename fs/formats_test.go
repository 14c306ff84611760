package fs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/index/targz"
)

// rawLayer is a layer of an image, whatever the bytes are.
type rawLayer []byte

func (l rawLayer) Digest() (v1.Hash, error) { return v1.NewHash(digest.FromBytes(l).String()) }

// DiffID implements v1.Layer. That of what is no layer does not matter.
func (l rawLayer) DiffID() (v1.Hash, error) {
	h := digest.Canonical.Digester()
	if r, err := targz.Unpack(bytes.NewReader(l), func(int64) error { return nil }); err == nil {
		_, _ = io.Copy(h.Hash(), r)
		_ = r.Close()
	}
	return v1.NewHash(h.Digest().String())
}

func (l rawLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l)), nil
}
func (l rawLayer) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
func (l rawLayer) Size() (int64, error)                 { return int64(len(l)), nil }

// MediaType is the wrong one for all but gzip: the bytes count.
func (l rawLayer) MediaType() (types.MediaType, error) {
	if bytes.HasPrefix(l, []byte(encryptedBytes)) {
		return ocispec.MediaTypeImageLayerGzip + "+encrypted", nil
	}
	return types.OCILayer, nil
}

const encryptedBytes = "encrypted"

// requests counts the requests for blobs.
func (w *world) requests() func(layer int) int64 {
	counts := make([]atomic.Int64, len(w.layers))
	count := func(p string) {
		for i, l := range w.layers {
			if path.Base(p) == l.String() {
				counts[i].Add(1)
			}
		}
	}
	w.gate.Store(&count)
	return func(i int) int64 { return counts[i].Load() }
}

func plainOf(t *testing.T, blob []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func zstdOf(t *testing.T, window int, parts ...[]byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithWindowSize(window), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, p := range parts {
		b = z.EncodeAll(p, b)
	}
	return b
}

// TestZstd: a layer in zstd is local; those above and below it stay lazy.
func TestZstd(t *testing.T) {
	blob, lines := manyFiles(t, 30, 40, 64<<10)
	device := plainOf(t, blob)
	var many [][]byte
	for rest := device; len(rest) > 0; rest = rest[min(len(rest), 100_000):] {
		many = append(many, rest[:min(len(rest), 100_000)])
	}
	small, large := zstdOf(t, 1<<20, device[:100_000]), device[100_000:]
	for name, zs := range map[string][]byte{
		"one frame":    zstdOf(t, 8<<20, device),
		"many frames":  zstdOf(t, 1<<20, many...),
		"large window": append(bytes.Clone(small), streamed(t, 64<<20, large)...),
		"plain":        device,
	} {
		t.Run(name, func(t *testing.T) {
			layers := twoLayers(t)
			w := newWorld(t, layers[0], zs, layers[1])
			w.index(nil)
			requests := w.requests()
			table := w.open(testDir(t), Auto)
			dirs := w.mountAll(table)
			mustList(t, dirs[1], lines)
			for i, want := range []int64{0, 1, 0} {
				if name == "large window" {
					want *= 2
				}
				if n := requests(i); n != want && name != "plain" {
					t.Errorf("layer %d: %d requests before anything is read, want %d", i, n, want)
				}
			}
			if got := readTree(t, dirs[2]); !strings.Contains(got, sum(smallFile)) {
				t.Errorf("the upper layer:\n%s", got)
			}
			for _, s := range table.Status() {
				if s.Layer == w.layers[1] && s.Mode != Local && name != "plain" {
					t.Errorf("mode %s", s.Mode)
				}
			}
		})
	}
}

// streamed compresses a part of unknown length, so that its window is not made smaller.
func streamed(t *testing.T, window int, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestWholeLayerStays: a layer that can only be fetched whole survives what others survive: it is
// given up and comes again, by one request; is repaired by one request; outlives micad; and a quota
// that it does not fit.
func TestWholeLayerStays(t *testing.T) {
	blob, lines := manyFiles(t, 31, 40, 64<<10)
	zs := zstdOf(t, 8<<20, plainOf(t, blob))
	for name, tc := range map[string]struct {
		quota int64
		fill  fetch.Policy
	}{
		"no quota":    {0, fetch.None},
		"fill":        {0, fetch.All},
		"small quota": {3_000_000, fetch.None}, // less than can be kept for the kernel
		"no room":     {1_000_000, fetch.None},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, zs)
			requests := w.requests()
			o := Options{Root: testDir(t), Mode: Auto, Fetch: fetch.Options{Fill: tc.fill}}
			o.Cache.Size = tc.quota
			o.Cache.InUse = func(context.Context) (map[digest.Digest]bool, error) {
				return nil, nil
			}
			table := w.openWith(o)
			d := w.layers[0]
			// fetched says that the layer is whole, and how often it was fetched by then.
			fetched := func(what string, n int64) {
				t.Helper()
				mustList(t, w.mountAll(table)[0], lines)
				s := table.Status()[0]
				if got := requests(0); got != n || s.Present != s.Total {
					t.Errorf("%s: %d requests, want %d; %+v", what, got, n, s)
				}
			}
			remount := func() {
				t.Helper()
				if err := table.Unmount(d); err != nil {
					t.Fatal(err)
				}
			}
			fetched("at first", 1)
			if tc.quota == 1_000_000 {
				return // it goes when something else is to come
			}
			awaitProof(t, table)
			harm(t, table, d, 700, 700_000, 700_001, 1_200_000)
			got, err := table.Verify(t.Context(), d)
			if err != nil || got.Wrong == 0 || got.Error != "" || got.Repaired != got.Wrong {
				t.Fatalf("%+v, %v", got, err)
			}
			remount()
			fetched("repaired", 2)
			if err := table.Cache().GiveUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s := table.Status()[0]; s.Present != 0 {
				t.Errorf("after GiveUp: %+v", s)
			}
			if n := usedBy(t, o.Root+"/layers"); n > 1_000_000 {
				t.Errorf("%d bytes are left on disk", n)
			}
			if tc.quota > 0 {
				remount() // the page cache of the lazy mount has it
			}
			fetched("given up", 3)
			if tc.quota == 0 {
				eventually(t, "the layer is local again", func() bool {
					return table.Status()[0].Mode == Local
				})
			}
			if err := table.Close(); err != nil {
				t.Fatal(err)
			}
			table = w.openWith(o)
			fetched("after a restart", 3)
		})
	}
}

// TestWholeLayerLost: what a power cut has left of it, nothing, comes again, by one request.
func TestWholeLayerLost(t *testing.T) {
	blob, lines := manyFiles(t, 32, 10, 64<<10)
	w := newWorld(t, zstdOf(t, 8<<20, plainOf(t, blob)))
	requests := w.requests()
	root := testDir(t)
	table := w.open(root, Auto)
	w.mountAll(table)
	l, err := table.store.Layer(w.layers[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := l.Dir()
	l.Close()
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	// As it is before the first flush.
	b, err := os.ReadFile(dir + "/layer.json")
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Replace(b, []byte(`"verified"`), []byte(`"lazy"`), 1)
	err = errors.Join(os.WriteFile(dir+"/layer.json", b, 0o600), os.RemoveAll(dir+"/present"))
	if err != nil {
		t.Fatal(err)
	}
	table = w.open(root, Auto)
	mustList(t, w.mountAll(table)[0], lines)
	if n := requests(0); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	eventually(t, "the layer is local again", func() bool {
		return table.Status()[0].Mode == Local
	})
}

// TestMalformedLayer: one download, and the reason.
func TestMalformedLayer(t *testing.T) {
	good := layerOf(t, entry{"a", 0o644, noise(33, 300_000)})
	crc := bytes.Clone(good)
	crc[len(crc)-6] ^= 1
	for name, tc := range map[string]struct {
		blob []byte
		text string
	}{
		"bytes behind": {append(bytes.Clone(good), "twenty-one bytes more"...), "built wrong"},
		"wrong crc":    {crc, "checksum"},
		"truncated":    {good[:200_000], "ends at"},
		"zstd":         {zstdOf(t, 1<<20, plainOf(t, good))[:100_000], "ends within a zstd frame"},
		"no tar":       {bytes.Repeat([]byte("no tar "), 50_000), "tar header"},
		"xz":           {append([]byte("\xfd7zXZ\x00"), good...), "in xz"},
		"encrypted":    {append([]byte(encryptedBytes), good...), "encrypted"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.blob)
			requests := w.requests()
			table := w.open(testDir(t), Auto)
			for range 2 { // containerd asks again when the image is pulled again
				_, err := table.Mount(t.Context(), w.layer(0), nil)
				if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tc.text) {
					t.Fatalf("error %v", err)
				}
			}
			want := int64(1)
			if name == "encrypted" {
				want = 0
			}
			if n := requests(0); n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
		})
	}
}

// TestNothingInVain: containerd fetches what lies above a layer that is not served; nobody else
// does.
func TestNothingInVain(t *testing.T) {
	base, _ := manyFiles(t, 34, 2, 1000)
	upper, _ := manyFiles(t, 35, 40, 256<<10)
	malformed := append(layerOf(t, entry{"a", 0o644, noise(36, 300_000)}),
		"twenty-one bytes more"...)
	for name, bad := range map[string][]byte{
		"malformed": malformed,
		"xz":        append([]byte("\xfd7zXZ\x00"), malformed...),
		"encrypted": append([]byte(encryptedBytes), malformed...),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, base, bad, upper)
			sent := make(chan struct{}) // closed when the layers above may come
			counts := make([]atomic.Int64, 3)
			gate := func(p string) {
				for i, l := range w.layers {
					if path.Base(p) != l.String() {
						continue
					}
					counts[i].Add(1)
					if i == 2 {
						select {
						case <-sent:
						case <-time.After(10 * time.Second):
						}
					}
				}
			}
			w.gate.Store(&gate)
			table := w.open(testDir(t), Auto)
			if _, err := table.Mount(t.Context(), w.layer(0), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := table.Mount(t.Context(), w.layer(1), nil); !errors.Is(err,
				ErrUnavailable) {
				t.Fatalf("error %v", err)
			}
			close(sent)
			time.Sleep(300 * time.Millisecond) // long enough for 10 MB
			if _, err := table.store.Layer(w.layers[2]); err == nil {
				t.Error("the layer above was downloaded in vain")
			}
			if n := counts[2].Load(); n > 1 || name == "encrypted" && n > 0 {
				t.Errorf("%d requests for the layer above", n)
			}
			if table.pulls.Bringing()[w.layers[2]] {
				t.Error("it is still being downloaded")
			}
		})
	}
}

// TestVainButWanted: an image's layer that another image cannot use is downloaded all the same.
func TestVainButWanted(t *testing.T) {
	upper, lines := manyFiles(t, 37, 4, 64<<10)
	bad := newWorld(t, append(layerOf(t, entry{"a", 0o644, noise(38, 3000)}), "more"...), upper)
	good := &world{t: t, blobs: [][]byte{upper}, ref: strings.Replace(bad.ref, "image", "other", 1)}
	good.push(empty.Image)
	table := bad.open(testDir(t), Auto)
	if _, err := table.Mount(t.Context(), bad.layer(0), nil); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("error %v", err)
	}
	mustList(t, good.mountAll(table)[0], lines)
}

// TestPanicInProof: a fault that a tar finds while a layer is proved is an error.
func TestPanicInProof(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	w.index(nil)
	table := w.open(testDir(t), Auto)
	w.mountAll(table)
	v, err := table.stored(w.layers[0], w.ref)
	if err != nil {
		t.Fatal(err)
	}
	_, done, err := v.Tree(t.Context(), panics{})
	defer done()
	if err == nil || table.Panics() != 1 {
		t.Errorf("%d panics, error %v", table.Panics(), err)
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic("a fault") }
