package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/targz"
)

// wire is a network path with one queue: what was asked for first comes first, whoever asks.
type wire struct {
	rtt  time.Duration
	rate float64 // bytes per second

	mu   sync.Mutex
	free time.Time
}

// depart queues n bytes and returns when they arrive.
func (l *wire) depart(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return l.free.Add(l.rtt / 2)
}

// far is a source at the other end of a wire.
type far struct {
	memory
	wire *wire
}

func (f *far) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := sleep(ctx, f.wire.rtt/2); err != nil {
		return nil, err
	}
	// The server puts everything on the line at once.
	b := &farBody{ctx: ctx, rest: f.b[off : off+n]}
	for left := int(n); left > 0; left -= farPiece {
		b.at = append(b.at, f.wire.depart(min(left, farPiece)))
	}
	return b, sleep(ctx, time.Until(b.at[0]))
}

const farPiece = 32 << 10

type farBody struct {
	ctx  context.Context
	rest []byte
	at   []time.Time // when each piece of rest arrives
	left int         // of the first
}

func (b *farBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	if b.left == 0 {
		if err := sleep(b.ctx, time.Until(b.at[0])); err != nil {
			return 0, err
		}
		b.at, b.left = b.at[1:], min(farPiece, len(b.rest))
	}
	n := copy(p, b.rest[:b.left])
	b.rest, b.left = b.rest[n:], b.left-n
	return n, nil
}

func (b *farBody) Close() error { return nil }

// newLarge returns a layer of 64 MiB that does not compress, in spans of 256 KiB.
func newLarge(t *testing.T) *sample {
	t.Helper()
	data := make([]byte, 64<<20)
	_, err := rand.NewChaCha8([32]byte{}).Read(data)
	must(t, err)
	// A member's bytes that are no tar are fine for a device.
	var b, device, windows, ix bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.HuffmanOnly)
	must(t, err)
	_, err = z.Write(append(make([]byte, 1024), data...))
	must(t, err)
	must(t, z.Close())
	blob := bytes.Clone(b.Bytes())
	d, err := targz.Scan(t.Context(), &b, targz.Options{SpanSize: 256 << 10, Device: &device, Windows: &windows})
	must(t, err)
	_, err = index.Write(&ix, d)
	must(t, err)
	return &sample{blob: blob, windows: windows.Bytes(), device: device.Bytes(), index: ix.Bytes(), header: d.Header, spans: d.Spans}
}

// TestDemandUnderFill: with a fill that takes all the line there is, a read waits twice as long as
// without at the most, and no more than a round trip and 20 ms longer.
func TestDemandUnderFill(t *testing.T) {
	s := newLarge(t)
	for _, l := range []struct {
		name string
		rtt  time.Duration
		rate float64
	}{
		{"10 ms, 125 MB/s", 10 * time.Millisecond, 125e6},
		{"50 ms, 25 MB/s", 50 * time.Millisecond, 25e6},
		{"1 ms, 1 GB/s", time.Millisecond, 1e9},
	} {
		t.Run(l.name, func(t *testing.T) {
			quiet, _ := latency(t, s, &wire{rtt: l.rtt, rate: l.rate}, alone)
			for name, prio := range map[string]line.Priority{"a fill": line.Background, "a fill near readers": line.Near} {
				filling, took := latency(t, s, &wire{rtt: l.rtt, rate: l.rate}, prio)
				t.Logf("p99 is %s alone and %s with %s, which takes %s", quiet, filling, name, took)
				if filling > min(2*quiet, quiet+l.rtt+20*time.Millisecond) {
					t.Errorf("%s: that is too long", name)
				}
				least := time.Duration(float64(len(s.device)) / l.rate * float64(time.Second))
				if took > 2*least+time.Second { // readers wait nearly all of the first two seconds
					t.Errorf("%s: the line alone takes %s", name, least)
				}
			}
		})
	}
}

// alone is what latency is given for no fill.
const alone = line.Background + 1

// latency returns the 99th percentile of random reads that find nothing, and how long the fill
// took, of that priority if it is one.
func latency(t *testing.T, s *sample, path *wire, fill line.Priority) (p99, took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		var whole time.Time
		f := setup(t, s, func(f *fixture, o *Options) {
			src := &far{wire: path}
			src.b = s.blob
			o.Blob = src
			o.Complete = func() { whole = time.Now() }
		})
		var fills sync.WaitGroup
		start := time.Now()
		if fill != alone {
			runs := make(chan Missing)
			fills.Go(func() {
				defer close(runs)
				for off := int64(0); ; {
					r, err := f.Next(off, f.Size(), fill)
					must(t, err)
					if r.Size == 0 {
						return
					}
					off = r.Off + r.Size
					runs <- r
				}
			})
			for range 8 {
				fills.Go(func() {
					for r := range runs {
						must(t, f.Fetch(t.Context(), r.Off, r.Size, fill))
					}
				})
			}
		}
		var waits []time.Duration
		r := rand.New(rand.NewPCG(1, 1))
		for deadline := start.Add(2 * time.Second); time.Now().Before(deadline); {
			off := r.Int64N(f.Size() - 4096)
			if !f.present(off, off+4096) {
				begin := time.Now()
				f.mustRead(off, 4096)
				waits = append(waits, time.Since(begin))
			}
			time.Sleep(time.Duration(r.Int64N(int64(20 * time.Millisecond))))
		}
		fills.Wait()
		f.wait()
		if fill != alone {
			took = whole.Sub(start)
		}
		slices.Sort(waits)
		p99 = waits[len(waits)*99/100]
	})
	return p99, took
}
