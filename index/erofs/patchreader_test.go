package erofs

import (
	"bytes"
	"testing"
)

// TestPatchReader reads in pieces of all sizes, so that patches lie across their ends.
func TestPatchReader(t *testing.T) {
	base := bytes.Repeat([]byte{1}, 1000)
	r := &patchReader{r: bytes.NewReader(base)}
	want := bytes.Clone(base)
	for _, off := range []int64{0, 100, 164, 500, 936} {
		p := inodePatch{off: off}
		for i := range p.b {
			p.b[i] = byte(off) + byte(i) + 2
		}
		copy(want[off:], p.b[:])
		r.patches = append(r.patches, p)
	}
	for size := 1; size <= 1000; size++ {
		for off := 0; off+size <= 1000; off += 1 + size/3 {
			got := make([]byte, size)
			if _, err := r.ReadAt(got, int64(off)); err != nil ||
				!bytes.Equal(got, want[off:off+size]) {
				t.Fatalf("%d bytes at %d: %v", size, off, err)
			}
		}
	}
}
