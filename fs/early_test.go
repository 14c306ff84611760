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

// publish pushes a profile of an image that has an index, and a copy of what it names, of which change is given what it is made of.
func (w *world) publish(p *profile.Profile, change func(c *copied)) {
	w.t.Helper()
	a, err := published.New(p, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := index.OpenBundle(bytes.NewReader(w.trees), int64(len(w.trees)), index.Limits{})
	if err != nil {
		w.t.Fatal(err)
	}
	c := copied{trees: w.indexed.Trees.Digest}
	if c.spans, err = published.Spans(p, b); err != nil {
		w.t.Fatal(err)
	}
	im, err := w.client().Image(w.ref)
	if err != nil {
		w.t.Fatal(err)
	}
	read := func(ctx context.Context, d ocispec.Descriptor, p []byte, off int64) error {
		return im.Blob(d).ReadAt(ctx, p, off)
	}
	if c.frames, err = published.Compress(w.t.Context(), read, w.indexed.Windows, c.spans); err != nil {
		w.t.Fatal(err)
	}
	change(&c)
	if err := a.AddCopy(c.trees, c.spans, c.frames); err != nil {
		w.t.Fatal(err)
	}
	for d, b := range map[*ocispec.Descriptor][]byte{&a.Blob: a.Content, &a.Copy: a.Copied} {
		if len(b) == 0 || c.lost && d == &a.Copy {
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

// copied is what a copy is made of.
type copied struct {
	trees  digest.Digest
	spans  []published.LayerSpan
	frames [][]byte
	lost   bool // at the registry
}

// TestEarly: what a start reads is fetched with the index, from the copy, once, and whatever that says or has harms nobody.
func TestEarly(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(c *copied)
		far      bool // the registry
		noLayers bool // all comes from the copy
		unusable bool // it is not looked at: the windows come early
	}{
		"right":      {noLayers: true, change: func(*copied) {}},
		"right, far": {far: true, noLayers: true, change: func(*copied) {}},
		"behind another image's": {noLayers: true, change: func(c *copied) {
			var other published.LayerSpan
			other.Layer = digest.FromString("another image's layer")
			c.spans, c.frames = append([]published.LayerSpan{other}, c.spans...), append([][]byte{make([]byte, 1000)}, c.frames...)
		}},
		"part of it":       {change: func(c *copied) { c.spans, c.frames = c.spans[:2], c.frames[:2] }},
		"of another index": {unusable: true, change: func(c *copied) { c.trees = digest.FromString("other trees") }},
		"of other spans": {change: func(c *copied) {
			for i := range c.spans {
				c.spans[i].Number++
			}
		}},
		"wrong": {change: func(c *copied) {
			for _, f := range c.frames {
				f[len(f)/2] ^= 1
			}
		}},
		"gone": {change: func(c *copied) { c.lost = true }},
		"none": {unusable: true, change: func(c *copied) { c.spans = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			p := &profile.Profile{Manifest: w.manifest, Runs: 1}
			for _, l := range w.layers {
				p.Ranges = append(p.Ranges, profile.Range{Layer: l, Size: 2 << 20, Runs: 1})
			}
			w.publish(p, c.change)
			far := func(path string) {
				if c.far && strings.Contains(path, "/referrers/") {
					time.Sleep(2 * earlyFar)
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
			var size int64
			for _, b := range w.blobs {
				size += int64(len(b))
			}
			if got := w.fetched.Load(); got > size+100 { // spans that are asked for one by one share bytes
				t.Errorf("fetched %d bytes of layers of %d", got, size)
			}
			if c.unusable {
				return // some of the windows are for nobody, and stay for some time
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
		body, _, err := s.Range(t.Context(), off, n)
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
	ranges := []index.Range{{Off: 1064, Size: 100_000}}
	alone := func(pieces []*piece) []run { return runsOf(pieces, func(int) int64 { return 0 }) }
	pieces := e.add(&feed{}, s.desc, ranges, 30_000)
	if len(pieces) != 4 || len(e.add(&feed{}, s.desc, ranges, 30_000)) != 0 {
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

	pieces = e.add(&feed{}, s.desc, ranges, 30_000)
	e.fetch(t.Context(), image, alone(pieces), 2)
	pieces[1].buf[7] ^= 1
	s.Suspect(40_000, 5)
	read(31_000, 20_000, 1)
	e.drop(pieces...)

	broken.Store(true)
	pieces = e.add(&feed{}, s.desc, ranges, 30_000)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.fetch(ctx, image, alone(pieces), 2)
	}()
	eventually(t, "they are asked for", func() bool { return e.asked(s.desc, windows+1000) })
	body, _, err := s.Range(t.Context(), 1000, 100)
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
	blob := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(blob)
	image, o, asked := earlyImage(t, serves(blob))
	e := o.early
	desc := ocispec.Descriptor{Digest: digest.FromString("copy"), Size: size}
	s := newCopySource(image, e, desc)
	taken := func() int64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.taken
	}
	read := func(off, n int64) {
		t.Helper()
		body, _, err := s.Range(t.Context(), off, n)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, blob[off:off+n]) {
			t.Fatalf("read [%d, +%d): %d bytes, %v", off, n, len(got), err)
		}
	}

	runs := runsOf(e.add(&feed{}, desc, []index.Range{{Size: size}}, part), func(int) int64 { return request })
	requests := int64(len(runs))
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.fetch(t.Context(), image, runs, 2)
	}()
	const full = earlyBytes / request
	eventually(t, "the room is full", func() bool { return taken() == earlyBytes && asked("image") == full })
	if !s.Planned(earlyBytes-part, 2*part) || s.Planned(0, earlyBytes) {
		t.Error("what is planned is not what there is no room for")
	}
	other := ocispec.Descriptor{Digest: digest.FromString("other"), Size: size}
	e.drop(e.add(&feed{}, other, []index.Range{{Size: size}}, part)[1:]...)
	if e.planned(other, 0, size) {
		t.Error("another pull waits for this one's readers")
	}
	e.drop(slices.Clone(e.pieces[other.Digest])...)
	last := int64(size) - request
	read(last, request) // a reader who does not wait
	if n := asked("image"); n != full+1 || s.Planned(last, request) {
		t.Errorf("%d requests, and it is planned: %t", n, s.Planned(last, request))
	}
	for off := int64(part); off < last; off += part { // the first is never read
		eventually(t, "the next piece is asked for", func() bool { return e.asked(s.desc, off) })
		read(off, part)
	}
	<-done
	if n := asked("image"); n != requests {
		t.Errorf("%d requests, want %d", n, requests)
	}
	if n := taken(); n != part {
		t.Errorf("%d bytes are left, want the first piece", n)
	}
	eventually(t, "what readers have passed is dropped", func() bool { e.dropUnread(); return taken() == 0 })
}
