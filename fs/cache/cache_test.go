package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// spanSize is the size of each span of the layers here.
const spanSize = 64 << 10

// fake is a layer with a store and without mounts. It is also the index of itself.
type fake struct {
	store  *store.Layer
	data   *layer.Layer
	spans  index.Spans
	lazy   int // calls of MakeLazy
	rested int
}

func (f *fake) Store() *store.Layer         { return f.store }
func (f *fake) Data() *layer.Layer          { return f.data }
func (f *fake) Spans() (index.Spans, error) { return f.spans, nil }
func (f *fake) Header() index.Header        { return index.Header{} }
func (f *fake) Rest()                       { f.rested++ }
func (f *fake) Refill()                     {}

func (f *fake) MakeLazy(context.Context) (int64, error) {
	_, bytes := f.store.Count()
	f.lazy++
	return bytes, f.data.Empty()
}

// node is a store with some layers.
type node struct {
	t      *testing.T
	store  *store.Store
	layers []Layer
	fixed  bool
}

func (n *node) Layers() []Layer { return slices.Clone(n.layers) }
func (n *node) Fixed() bool     { return n.fixed }

func newNode(t *testing.T) *node {
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &node{t: t, store: s}
}

func (n *node) cache(o Options) *Cache {
	n.t.Helper()
	c, err := New(n.t.Context(), n, n.store, n.t.TempDir(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// content is the bytes of a span.
func content(span int) []byte {
	b := make([]byte, spanSize)
	for i := range b {
		b[i] = byte(1 + span + i%7)
	}
	return b
}

// add makes a layer of spans that are all here.
func (n *node) add(spans int, state store.State) *fake {
	n.t.Helper()
	d := digest.FromString(fmt.Sprint("layer ", len(n.layers)))
	f := &fake{}
	for i := range spans {
		at := int64(i) * spanSize
		f.spans = append(f.spans, index.Span{
			Device: at, Size: spanSize, Digest: sha256.Sum256(content(i)),
		})
	}
	in, err := n.store.Create(d)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := in.Index().Write([]byte("index")); err != nil {
		n.t.Fatal(err)
	}
	size := int64(spans) * spanSize
	f.store, err = in.Commit(store.Record{
		Layer: d, DiffID: digest.FromString("tar"), LayerSize: size, DeviceSize: size, Spans: spans,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	f.data = layer.New(f, f.store, layer.Options{})
	n.t.Cleanup(func() { f.data.Close(); f.store.Close() })
	for i := range spans {
		if err := f.store.WriteSpan(i, content(i)); err != nil {
			n.t.Fatal(err)
		}
	}
	if state != store.Lazy {
		if err := f.store.Mark(state); err != nil {
			n.t.Fatal(err)
		}
	}
	n.layers = append(n.layers, f)
	return f
}

func (f *fake) has() int64 {
	_, bytes := f.store.Count()
	return bytes
}

// using says that containers use these layers.
func using(layers ...*fake) func(context.Context) (map[digest.Digest]bool, error) {
	return func(context.Context) (map[digest.Digest]bool, error) {
		used := map[digest.Digest]bool{}
		for _, f := range layers {
			used[f.store.Digest()] = true
		}
		return used, nil
	}
}

// TestWarmth: what no container uses is colder than what one does, whenever that was read.
func TestWarmth(t *testing.T) {
	now := time.Now()
	ordered := []warmth{
		warmthOf(false, now.Add(-3*time.Hour), now), warmthOf(false, now.Add(-2*time.Hour), now),
		warmthOf(false, now, now), warmthOf(true, now.Add(-3*time.Hour), now),
		warmthOf(true, now, now), hottest,
	}
	if !slices.IsSortedFunc(ordered, warmth.compare) {
		t.Errorf("not the coldest first: %v", ordered)
	}
	minute := now.Add(-2 * time.Hour).Truncate(time.Minute)
	if a, b := warmthOf(false, minute, now), warmthOf(false, minute.Add(59*time.Second),
		now); a != b {
		t.Errorf("of one minute long ago: %v and %v", a, b)
	}
}

// TestFree: as much goes as is needed, first of what no container uses; a whole layer goes as such.
func TestFree(t *testing.T) {
	for name, c := range map[string]struct {
		need       int64
		fixed      bool
		used, rest int64 // bytes left of the layer that is used, and of the others
		lazy       int
	}{
		"some":       {need: 3 * spanSize, used: 4 * spanSize, rest: 5 * spanSize},
		"unused":     {need: 8 * spanSize, used: 4 * spanSize, lazy: 1},
		"used too":   {need: 9 * spanSize, used: 3 * spanSize, lazy: 1},
		"all":        {need: 99 * spanSize, lazy: 1},
		"all, fixed": {need: 99 * spanSize, fixed: true, rest: 4 * spanSize},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			used, lazy, whole := n.add(4, store.Lazy), n.add(4, store.Lazy), n.add(4,
				store.Verified)
			n.fixed = c.fixed
			cache := n.cache(Options{InUse: using(used)})
			if c.need < 4*spanSize {
				// The whole layer is the colder one where it was never used.
				whole.store.Used()
			}
			freed, err := cache.free(t.Context(), c.need, hottest, cache.candidates(t.Context(), 0))
			if err != nil {
				t.Fatal(err)
			}
			if got := 12*spanSize - used.has() - lazy.has() - whole.has(); freed != got {
				t.Errorf("%d bytes are said to have gone, %d have", freed, got)
			}
			if used.has() != c.used || lazy.has()+whole.has() != c.rest || whole.lazy != c.lazy {
				t.Errorf("left: %d bytes used, %d others; made lazy: %d",
					used.has(), lazy.has()+whole.has(), whole.lazy)
			}
		})
	}
}

// TestGiveUp: all goes that no container uses, and rests.
func TestGiveUp(t *testing.T) {
	n := newNode(t)
	used, unused := n.add(2, store.Lazy), n.add(2, store.Lazy)
	c := n.cache(Options{InUse: using(used)})
	if err := c.GiveUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if unused.has() != 0 || unused.rested != 1 || used.has() != 2*spanSize || used.rested != 0 {
		t.Errorf("%+v and %+v", used, unused)
	}
	if s := c.Status(); s.Evicted != 2*spanSize {
		t.Errorf("%+v", s)
	}
}

// TestRefused: a span for which nothing can go is refused, and one of a layer that goes as a whole
// is not.
func TestRefused(t *testing.T) {
	n := newNode(t)
	f, g := n.add(2, store.Verified), n.add(2, store.Lazy)
	if _, err := g.store.Evict([]int{0, 1}); err != nil {
		t.Fatal(err)
	}
	c := n.cache(Options{Size: spanSize, InUse: using(f)})
	done := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	go func() { defer close(done); c.Run(ctx) }()
	defer func() { stop(); <-done }()
	if _, err := c.Guard(g.store, false).Put(0, content(0)); !errors.Is(err, errQuota) {
		t.Error(err)
	}
	if _, err := c.Guard(g.store, true).Put(0, content(0)); err != nil {
		t.Error(err)
	}
	if s := c.Status(); s.Refused != 2*spanSize || !s.Full {
		t.Errorf("%+v", s)
	}
}

// TestCountedOnce: what is on disk is not counted as on its way any more, also while its write has
// not returned: others would go for it.
func TestCountedOnce(t *testing.T) {
	n := newNode(t)
	f := n.add(1, store.Lazy)
	if _, err := f.store.Evict([]int{0}); err != nil {
		t.Fatal(err)
	}
	c := n.cache(Options{Size: 4 * spanSize})
	empty, seen := c.used(), int64(0)
	f.store.Know(f.Spans, nil, func() { seen = c.used() })
	stored, err := c.Guard(f.store, false).Put(0, content(0))
	if after := c.used(); err != nil || !stored || seen != empty+spanSize || after != seen {
		t.Errorf("%v, %v: used %d bytes before, %d within and %d after", stored, err, empty, seen, after)
	}
}

// TestCompare: what is wrong on disk is found, and stays as it is.
func TestCompare(t *testing.T) {
	n := newNode(t)
	f := n.add(3, store.Lazy)
	f.spans[1].Digest[0] ^= 1
	out, err := Compare(t.Context(), f)
	if err != nil || out.Wrong != 1 || out.Spans != 3 || out.Bytes != 3*spanSize {
		t.Errorf("%+v, %v", out, err)
	}
	if f.has() != 3*spanSize {
		t.Errorf("%d bytes are left", f.has())
	}
}
