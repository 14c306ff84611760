package layer

import (
	"testing"
)

// BenchmarkWarmRead reads what is present, in requests of 4 KiB.
func BenchmarkWarmRead(b *testing.B) {
	f := setup(b, newSample(b), nil)
	f.mustRead(f.span(5))
	f.wait()
	off, _ := f.span(5)
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if err := f.ReadAt(b.Context(), p, off); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkColdFill fetches, decodes, verifies and stores a whole layer from a
// source that takes no time; the bytes are the device's.
func BenchmarkColdFill(b *testing.B) {
	s := newSample(b)
	b.SetBytes(int64(len(s.device)))
	for b.Loop() {
		b.StopTimer()
		f := setup(b, s, nil)
		b.StartTimer()
		if err := f.Fill(b.Context(), 0, f.Size()); err != nil {
			b.Fatal(err)
		}
		f.wait()
	}
}
