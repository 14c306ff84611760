package store

import (
	"math/rand/v2"
	"testing"
)

// TestZeros: whatever is written, wherever it begins, a read of any part of it is settled if it is
// right and not if a sector that was not zeros reads as zeros.
func TestZeros(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		off := r.Int64N(2000)
		b := make([]byte, 1+r.IntN(5000))
		for at := 0; at < len(b); at += 1 + r.IntN(900) {
			b[at] = byte(r.IntN(2))
		}
		known := zerosIn(b, off)
		settled := func(p []byte, off int64) bool {
			return eachZero(p, off, func(sector int64, _ bool) bool { return known.has(sector) })
		}
		first := (off + 511) / 512 // the first whole sector
		for s := first; s*512+512 <= off+int64(len(b)); s++ {
			p := b[s*512-off:][:512]
			if !settled(p, s*512) {
				t.Fatalf("sector %d of what was written at %d is not settled", s, off)
			}
			if was := zero(p); settled(make([]byte, 512), s*512) != was || known.has(s) != was {
				t.Fatalf("sector %d, written as zeros: %v; known: %v", s, was, known.has(s))
			}
			from := r.IntN(512)
			if lost := make([]byte, 1+r.IntN(512-from)); !zero(p) && settled(lost, s*512+int64(from)) {
				t.Fatalf("%d lost bytes of sector %d are settled", len(lost), s)
			}
		}
	}
}
