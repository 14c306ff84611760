package fs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote"
)

// publish pushes a profile of an image that has an index. change is given its first ranges; what it returns of their bytes, if any, is
// pushed as their copy, if it is not lost.
func (w *world) publish(p *profile.Profile, change func(ranges []published.BlobRange, bytes []byte) ([]published.BlobRange, []byte), lost bool) {
	w.t.Helper()
	a, err := published.New(p, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := index.OpenBundle(bytes.NewReader(w.trees), int64(len(w.trees)), index.Limits{})
	if err != nil {
		w.t.Fatal(err)
	}
	ranges, err := published.First(p, b, w.indexed.Windows, published.MaxCopy)
	if err != nil {
		w.t.Fatal(err)
	}
	im, err := w.client().Image(w.ref)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []byte
	for _, r := range ranges {
		p := make([]byte, r.Size)
		if err := im.Blob(ocispec.Descriptor{Digest: r.Blob, Size: r.BlobSize}).ReadAt(w.t.Context(), p, r.Off); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, p...)
	}
	if err := a.Early(change(ranges, all)); err != nil {
		w.t.Fatal(err)
	}
	for d, b := range map[*ocispec.Descriptor][]byte{&a.Blob: a.Content, &a.Copy: a.Copied} {
		if len(b) == 0 || lost && d == &a.Copy {
			continue
		}
		if err := im.PushBlob(w.t.Context(), *d, bytes.NewReader(b)); err != nil {
			w.t.Fatal(err)
		}
	}
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: w.manifest, Size: 1}
	if _, err := im.PushReferrer(w.t.Context(), subject, a.Manifest(subject)); err != nil {
		w.t.Fatal(err)
	}
}

// TestEarly: what a published profile says that a start reads first is fetched with the index, once, and whatever else it says
// harms nobody.
func TestEarly(t *testing.T) {
	stranger := digest.FromString("another image's layer")
	for name, c := range map[string]struct {
		change   func(r []published.BlobRange, bytes []byte) ([]published.BlobRange, []byte)
		lost     bool // the copy
		near     bool // the registry
		noLayers bool // all comes from the copy
	}{
		"right": {change: func(r []published.BlobRange, _ []byte) ([]published.BlobRange, []byte) { return r, nil }},
		"of another image": {change: func(r []published.BlobRange, _ []byte) ([]published.BlobRange, []byte) {
			return append(r, published.BlobRange{Blob: stranger, BlobSize: 1 << 30, Off: 0, Size: 1 << 20}), nil
		}},
		"of another size": {change: func(r []published.BlobRange, _ []byte) ([]published.BlobRange, []byte) {
			for i := range r {
				r[i].BlobSize += 4096
			}
			return r, nil
		}},
		"copied":       {noLayers: true, change: func(r []published.BlobRange, b []byte) ([]published.BlobRange, []byte) { return r, b }},
		"copied, near": {near: true, noLayers: true, change: func(r []published.BlobRange, b []byte) ([]published.BlobRange, []byte) { return r, b }},
		"copied, behind another image's": {noLayers: true, change: func(r []published.BlobRange, b []byte) ([]published.BlobRange, []byte) {
			other := published.BlobRange{Blob: stranger, BlobSize: 1 << 30, Off: 0, Size: 1000}
			return append([]published.BlobRange{other}, r...), append(make([]byte, other.Size), b...)
		}},
		"copied wrongly": {change: func(r []published.BlobRange, b []byte) ([]published.BlobRange, []byte) {
			for i := range b {
				b[i] ^= byte(i >> 9)
			}
			return r, b
		}},
		"cut copy":       {change: func(r []published.BlobRange, b []byte) ([]published.BlobRange, []byte) { return r, b[:len(b)/2] }},
		"copy that went": {lost: true, change: func(r []published.BlobRange, b []byte) ([]published.BlobRange, []byte) { return r, b }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			p := &profile.Profile{Manifest: w.manifest, Runs: 1}
			for _, l := range w.layers {
				p.Ranges = append(p.Ranges, profile.Range{Layer: l, Size: 2 << 20, Runs: 1})
			}
			w.publish(p, c.change, c.lost)
			far := func(path string) {
				if !c.near && strings.Contains(path, "/referrers/") {
					time.Sleep(2 * earlyFrom)
				}
			}
			w.gate.Store(&far)
			w.fetched.Store(0)
			table := w.openWith(Options{Root: testDir(t), Mode: EROFS, Fetch: fetch.Options{Fill: fetch.Profile}})
			dirs := w.mountAll(table)
			start := time.Now()
			eventually(t, "the profile was replayed", func() bool {
				all := table.Replays()
				return len(all) == 1 && all[0].Finished && all[0].Brought > 0
			})
			if took := time.Since(start); took > earlyFor-earlyStall {
				t.Errorf("the replay waited %v for what does not come early", took)
			}
			if got := w.fetched.Load(); (got == 0) != c.noLayers {
				t.Errorf("the profile took %d bytes of layers", got)
			}
			if got := readTree(t, dirs[0]); !strings.Contains(got, sum(bigFile)) {
				t.Errorf("wrong content:\n%s", got)
			}
			if name == "of another size" {
				return // it is asked for in vain
			}
			var size int64
			for _, b := range w.blobs {
				size += int64(len(b))
			}
			if got := w.fetched.Load(); got > size && name != "copied wrongly" { // spans that share a byte are asked for one by one
				t.Errorf("fetched %d bytes of layers of %d", got, size)
			}
			eventually(t, "what was taken is dropped", func() bool {
				table.early.mu.Lock()
				defer table.early.mu.Unlock()
				return table.early.taken == 0 && len(table.early.pieces) == 0
			})
		})
	}
}

// earlyImage returns an image whose registry answers as handle does, the origins of a layer of it, and what counts the requests.
func earlyImage(t *testing.T, handle http.HandlerFunc) (*remote.Image, *origins, func(name string) int64) {
	t.Helper()
	host, asked := repositories(t, map[string]http.HandlerFunc{"image": handle})
	client, err := remote.New(remote.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	image, err := client.Image(host + "/image:1")
	if err != nil {
		t.Fatal(err)
	}
	o := &origins{client: client, early: &early{}}
	o.add(host + "/image:1")
	return image, o, asked
}

// asked says whether the piece with a byte of a blob has been asked for.
func (e *early) asked(blob ocispec.Descriptor, off int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.findLocked(blob, off)
	return p != nil && p.buf != nil
}

// TestEarlySource: a source takes what was fetched early, asks for the rest, and asks for all where that is wrong or does
// not come.
func TestEarlySource(t *testing.T) {
	blob := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	var broken atomic.Bool
	image, o, asked := earlyImage(t, func(rw http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		serves(blob)(rw, r)
	})
	e := o.early
	d := digest.FromBytes(blob)
	const windows = 64 // the source begins there in the blob
	s := newSource(o, d, int64(len(blob)), windows, int64(len(blob))-windows)
	read := func(off, n int64, requests int64) {
		t.Helper()
		before := asked("image")
		body, err := s.Range(t.Context(), off, n)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, blob[windows+off:windows+off+n]) {
			t.Errorf("read [%d, +%d): %d bytes, %v", off, n, len(got), err)
		}
		if more := asked("image") - before; more != requests {
			t.Errorf("read [%d, +%d): %d requests, want %d", off, n, more, requests)
		}
	}
	ranges := []published.BlobRange{{Blob: d, BlobSize: int64(len(blob)), Off: 1064, Size: 100_000}}
	pieces := e.add(&feed{}, ranges, 30_000)
	if len(pieces) != 4 || len(e.add(&feed{}, ranges, 30_000)) != 0 {
		t.Errorf("%d pieces", len(pieces))
	}
	e.fetch(t.Context(), image, alone(pieces), 2)
	read(1000, 40_000, 0)
	read(60_000, 60_000, 1) // all that is there, and more
	read(0, 2000, 1)        // begins before it
	read(41_000, 19_000, 0) // what was left
	read(1000, 100_000, 1)  // it was taken
	if e.taken != 0 {
		t.Errorf("%d bytes are left", e.taken)
	}

	pieces = e.add(&feed{}, ranges, 30_000)
	e.fetch(t.Context(), image, alone(pieces), 2)
	pieces[1].buf[7] ^= 1
	s.Suspect(40_000, 5)
	read(31_000, 20_000, 1)
	e.drop(pieces...)

	broken.Store(true)
	pieces = e.add(&feed{}, ranges, 30_000)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.fetch(ctx, image, alone(pieces), 2)
	}()
	eventually(t, "they are asked for", func() bool { return e.asked(s.desc, windows+1000) })
	body, err := s.Range(t.Context(), 1000, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	<-done
	broken.Store(false)
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob[1064:1164]) {
		t.Errorf("after early requests failed: %q, %v", got, err)
	}
	if e.taken != 0 {
		t.Errorf("%d bytes of requests that failed are left", e.taken)
	}
}

// TestEarlyRoom: of a copy that is larger than there is room for comes more as readers read; what they pass, or ask for themselves, holds
// nothing up.
func TestEarlyRoom(t *testing.T) {
	const size, part, request = 2*earlyBytes + 4<<20, 1 << 20, 4 << 20
	layer := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(layer)
	var fromLayer, fromCopy atomic.Int64
	layerDigest, copyDigest := digest.FromString("layer"), digest.FromString("copy")
	image, o, _ := earlyImage(t, func(rw http.ResponseWriter, r *http.Request) {
		n := &fromLayer
		if strings.HasSuffix(r.URL.Path, copyDigest.String()) {
			n = &fromCopy
		}
		n.Add(1)
		serves(layer)(rw, r)
	})
	e := o.early
	s := newSource(o, layerDigest, size, 0, size)
	taken := func() int64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.taken
	}
	read := func(off, n int64) {
		t.Helper()
		body, err := s.Range(t.Context(), off, n)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, layer[off:off+n]) {
			t.Fatalf("read [%d, +%d): %d bytes, %v", off, n, len(got), err)
		}
	}

	var runs []run
	for _, p := range e.add(&feed{}, []published.BlobRange{{Blob: layerDigest, BlobSize: size, Size: size}}, part) {
		runs = appendRun(runs, run{ocispec.Descriptor{Digest: copyDigest, Size: size}, p.off, []*piece{p}}, request)
	}
	requests := int64(len(runs))
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.fetch(t.Context(), image, runs, 2)
	}()
	eventually(t, "the room is full", func() bool { return taken() == earlyBytes })
	if !s.Planned(earlyBytes-part, 2*part) || s.Planned(0, earlyBytes) {
		t.Error("what is planned is not what there is no room for")
	}
	e.add(&feed{}, []published.BlobRange{{Blob: copyDigest, BlobSize: size, Size: size}}, part)
	if e.planned(ocispec.Descriptor{Digest: copyDigest, Size: size}, 0, size) {
		t.Error("another pull waits for this one's readers")
	}
	e.drop(slices.Clone(e.pieces[copyDigest])...)
	last := int64(size) - request
	read(last, request) // a reader who does not wait
	if fromLayer.Load() != 1 || s.Planned(last, request) {
		t.Errorf("%d requests, and it is planned: %t", fromLayer.Load(), s.Planned(last, request))
	}
	for off := int64(part); off < last; off += part { // the first is never read
		eventually(t, "the next piece is asked for", func() bool { return e.asked(s.desc, off) })
		read(off, part)
	}
	<-done
	if n := fromLayer.Load(); n != 1 {
		t.Errorf("%d requests to the layer, want that of who did not wait", n)
	}
	if n := fromCopy.Load(); n != requests-1 {
		t.Errorf("%d requests to the copy, want %d", n, requests-1)
	}
	if n := taken(); n != part {
		t.Errorf("%d bytes are left, want the first piece", n)
	}
	eventually(t, "what readers have passed is dropped", func() bool { e.dropUnread(); return taken() == 0 })
}
