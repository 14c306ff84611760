package profile

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// read is a read some time after the one before.
type read struct {
	after  time.Duration
	layer  digest.Digest
	off, n int64
}

func TestRecorder(t *testing.T) {
	const b = BlockSize
	for name, c := range map[string]struct {
		reads []read
		want  []Range
	}{
		"nothing":      {},
		"one byte":     {[]read{{0, layerA, 3*b + 7, 1}}, []Range{at(0, layerA, 3, 1)}},
		"block's edge": {[]read{{0, layerA, b - 1, 2}}, []Range{at(0, layerA, 0, 2)}},
		"whole block":  {[]read{{0, layerA, b, b}}, []Range{at(0, layerA, 1, 1)}},
		"starts at 0":  {[]read{{time.Hour, layerA, 0, b}}, []Range{at(0, layerA, 0, 1)}},
		"again": {[]read{{0, layerA, 0, b}, {ms, layerA, 0, b}},
			[]Range{at(0, layerA, 0, 1)}},
		"in order": {[]read{{0, layerB, 9 * b, b}, {ms, layerA, 0, b}},
			[]Range{at(0, layerB, 9, 1), at(ms, layerA, 0, 1)}},
		"forward": {[]read{{0, layerA, 0, b}, {ms, layerB, 0, b}, {ms, layerA, b, b}},
			[]Range{at(0, layerA, 0, 2), at(ms, layerB, 0, 1)}},
		"backward": {[]read{{0, layerA, 5 * b, b}, {ms, layerA, 4 * b, b},
			{ms, layerA, 6 * b, b}}, []Range{at(0, layerA, 4, 3)}},
		"later": {[]read{{0, layerA, 0, b}, {51 * ms, layerA, b, b}},
			[]Range{at(0, layerA, 0, 1), at(51*ms, layerA, 1, 1)}},
		"partly known": {[]read{{0, layerA, b, b}, {time.Second, layerA, 0, 3 * b}},
			[]Range{at(0, layerA, 1, 1), at(time.Second, layerA, 0, 1),
				at(time.Second, layerA, 2, 1)}},
		"long, then on": {[]read{{0, layerA, 0, 100 * b}, {ms, layerA, 100 * b, b}},
			[]Range{at(0, layerA, 0, 101)}},
		"cut to ms": {[]read{{0, layerA, 0, b}, {1999 * time.Microsecond, layerB, 0, b}},
			[]Range{at(0, layerA, 0, 1), at(ms, layerB, 0, 1)}},
		"no reads": {[]read{{0, layerA, -1, 5}, {0, layerA, 5, 0}, {0, layerA, 5, -1},
			{0, layerA, 1, math.MaxInt64}, {0, layerA, math.MaxInt64, 1}}, nil},
		"far away": {[]read{{0, layerA, maxOffset - b, b}, {ms, layerA, 0, b}},
			[]Range{at(0, layerA, 0, 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRecorder(manifest, nil)
				for _, read := range c.reads {
					time.Sleep(read.after)
					r.Read(read.layer, read.off, read.n)
				}
				p := r.Profile()
				wantProfile(t, p, run(c.want...))
				if err := p.Check(Limits{}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestRecorderQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecorder(manifest, nil)
		time.Sleep(time.Minute)
		if r.Quiet(0) || !r.LastNew().IsZero() || !r.Started().IsZero() {
			t.Error("quiet before the first read")
		}
		start := time.Now()
		r.Read(layerA, 0, 1)
		time.Sleep(time.Second)
		r.Read(layerA, 0, 2) // nothing new
		if !r.Quiet(time.Second) || r.Quiet(time.Second+1) || !r.LastNew().Equal(start) {
			t.Errorf("a second after the last new block: last %s, start %s", r.LastNew(), start)
		}
		r.Read(layerA, 0, BlockSize+1)
		if r.Quiet(1) || !r.LastNew().Equal(time.Now()) || !r.Started().Equal(start) {
			t.Error("quiet just after a new block")
		}
	})
}

// Each block is recorded once, whoever reads it.
func TestRecorderParallel(t *testing.T) {
	r := NewRecorder(manifest, nil)
	layers := []digest.Digest{layerA, layerB, digest.FromString("c")}
	const blocks = 3000
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for _, b := range rng.Perm(blocks) {
				r.Read(layers[rng.IntN(len(layers))], int64(b)*BlockSize, 2*BlockSize)
				if b == 0 {
					r.Profile()
				}
			}
			for _, l := range layers {
				r.Read(l, 0, (blocks+1)*BlockSize)
			}
		})
	}
	wg.Wait()
	p := r.Profile()
	if err := p.Check(Limits{}); err != nil {
		t.Error(err)
	}
	if got, want := p.Bytes(), int64(len(layers)*(blocks+1)*BlockSize); got != want {
		t.Errorf("recorded %d bytes, want %d", got, want)
	}
}

func TestRecorderBounds(t *testing.T) {
	r := NewRecorder(manifest, nil)
	for i := range int64(maxAccesses + 1000) {
		r.Read(layerA, i*BlockSize, 1)
	}
	if n := r.Profile().Bytes() / BlockSize; n != maxAccesses {
		t.Errorf("recorded %d blocks, want %d", n, maxAccesses)
	}
	if size := cap(r.order) * 16; size > 8<<20 {
		t.Errorf("the order takes %d bytes", size)
	}
	r = NewRecorder(manifest, nil)
	for i := range maxLayers + 10 {
		r.Read(digest.FromBytes([]byte{byte(i), byte(i >> 8)}), 0, 1)
	}
	if n := r.Profile().Layers(); n != maxLayers {
		t.Errorf("recorded %d layers, want %d", n, maxLayers)
	}
	// Devices that claim to be huge.
	r = NewRecorder(manifest, nil)
	for i := range 100 {
		r.Read(digest.FromBytes([]byte{byte(i)}), 1<<39-1, 1)
	}
	if r.words > maxWords {
		t.Errorf("bitmaps of %d words", r.words)
	}
	if n := len(r.Profile().Ranges); n != 2 {
		t.Errorf("recorded %d ranges, want 2: half a TiB each", n)
	}
}

func BenchmarkRecorderKnown(b *testing.B) {
	r := NewRecorder(manifest, nil)
	r.Read(layerA, 0, 1<<30)
	b.RunParallel(func(pb *testing.PB) {
		off := int64(0)
		for pb.Next() {
			r.Read(layerA, off&(1<<30-1), 128<<10)
			off += 128 << 10
		}
	})
}

func BenchmarkRecorderNew(b *testing.B) {
	var r *Recorder
	for i := range int64(b.N) {
		if i%maxAccesses == 0 {
			r = NewRecorder(manifest, nil)
		}
		r.Read(layerA, i%maxAccesses*BlockSize, BlockSize)
	}
}
