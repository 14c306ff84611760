package fs

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index/bundle"
)

// publish pushes a profile of an image that has an index, and a copy of what it names, of which
// change is given what it is made of.
func (w *world) publish(p *profile.Profile, change func(c *copied)) {
	w.t.Helper()
	a, err := published.New(p, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := bundle.Open(bytes.NewReader(w.trees), int64(len(w.trees)), bundle.Limits{})
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
	if c.frames, err = published.Compress(w.t.Context(), read, w.indexed.Windows,
		c.spans); err != nil {
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
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: w.manifest,
		Size: 1}
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

// TestEarly: what a start reads is fetched with the index, from the copy, once, and whatever that
// says or has harms nobody.
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
			c.spans, c.frames = append([]published.LayerSpan{other},
				c.spans...), append([][]byte{make([]byte, 1000)}, c.frames...)
		}},
		"part of it": {change: func(c *copied) {
			c.spans, c.frames = c.spans[:2], c.frames[:2]
		}},
		"of another index": {unusable: true, change: func(c *copied) {
			c.trees = digest.FromString("other trees")
		}},
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
			table := w.openWith(Options{Root: testDir(t), Mode: EROFS,
				Fetch: fetch.Options{Fill: fetch.Profile}})
			dirs := w.mountAll(table)
			start := time.Now()
			eventually(t, "the profile was replayed", func() bool {
				all := table.Replays()
				return len(all) == 1 && all[0].Finished && all[0].Brought > 0
			})
			if took := time.Since(start); took > earlyFor-2*time.Second {
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
			// spans that are asked for one by one share bytes
			if got := w.fetched.Load(); got > size+100 {
				t.Errorf("fetched %d bytes of layers of %d", got, size)
			}
			if c.unusable {
				return // some of the windows are for nobody, and stay for some time
			}
			eventually(t, "what was taken is dropped", func() bool {
				all := table.budget.Frames
				if !all.Try(all.Size()) {
					return false
				}
				all.Release(all.Size())
				return true
			})
		})
	}
}
