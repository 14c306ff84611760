package window

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// mark is a reference: n bytes, back bytes before the window's end.
type mark struct{ back, n int }

func setOf(marks ...mark) *Set {
	s := new(Set)
	for _, m := range marks {
		s.Add(m.back, m.n)
	}
	return s
}

func TestSet(t *testing.T) {
	tests := []struct {
		name      string
		set       *Set
		len, runs int
	}{
		{"empty", setOf(), 0, 0},
		{"last byte", setOf(mark{1, 1}), 1, 1},
		{"first byte", setOf(mark{Size, 1}), 1, 1},
		{"all", setOf(mark{Size, Size}), Size, 1},
		{"before and after", setOf(mark{Size + 10, 12}, mark{3, 30}), 5, 2},
		{"outside", setOf(mark{Size + 10, 10}, mark{0, 5}, mark{-4, 4}), 0, 0},
		{"over a word", setOf(mark{100, 80}), 80, 1},
		{"overlapping", setOf(mark{100, 10}, mark{95, 10}), 15, 1},
		{"touching at a word", setOf(mark{128, 64}, mark{64, 3}), 67, 1},
		{"apart", setOf(mark{100, 10}, mark{80, 10}), 20, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if n, runs := tt.set.Len(), tt.set.Runs(); n != tt.len || runs != tt.runs {
				t.Errorf("%d bytes in %d runs, want %d in %d", n, runs, tt.len, tt.runs)
			}
			tt.set.Reset()
			if n := tt.set.Len(); n != 0 {
				t.Errorf("%d bytes after Reset", n)
			}
		})
	}
}

func TestEncode(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, Size)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	text := bytes.Repeat([]byte("a window of a text, "), Size/20+1)[:Size]
	every := func(step, n int) *Set {
		s := new(Set)
		for back := n; back <= Size; back += step {
			s.Add(back, n)
		}
		return s
	}
	for name, window := range map[string][]byte{"noise": noise, "text": text, "short": text[:1000],
		"none": nil} {
		for setName, set := range map[string]*Set{
			"all": setOf(mark{Size, Size}), "ends": setOf(mark{Size, 1},
				mark{1, 1}), "middle": setOf(mark{500, 50}),
			"every second": every(2, 1), "every tenth": every(10, 1), "runs": every(50,
				20), "empty": setOf(),
		} {
			t.Run(name+"/"+setName, func(t *testing.T) {
				enc, err := Encode(window, set)
				if err != nil {
					t.Fatal(err)
				}
				full := make([]byte, Size)
				copy(full[Size-len(window):], window)
				if len(enc) == 0 {
					if setName != "empty" && len(window) == Size {
						t.Fatal("nothing encoded")
					}
					return
				}
				if len(enc) > MaxEncoded {
					t.Fatalf("%d bytes encoded", len(enc))
				}
				again, err := Encode(window, set)
				if err != nil || !bytes.Equal(enc, again) {
					t.Fatalf("encoded differently, %v", err)
				}
				got := bytes.Repeat([]byte{0xaa}, Size)
				if err := Decode(got, enc); err != nil {
					t.Fatal(err)
				}
				for i, b := range got {
					in := set.words[i/64]>>(i%64)&1 == 1
					if in && b != full[i] {
						t.Fatalf("byte %d is %#x, want %#x", i, b, full[i])
					}
					if !in && b != 0 && b != full[i] {
						t.Fatalf("byte %d, which is not in the set, is %#x", i, b)
					}
				}
				for i := range enc {
					if err := Decode(got, enc[:i]); !errors.Is(err, ErrCorrupt) {
						t.Fatalf("cut to %d of %d bytes: error %v", i, len(enc), err)
					}
				}
			})
		}
	}
}

func TestDecodeCorrupt(t *testing.T) {
	dst := make([]byte, Size)
	for name, enc := range map[string][]byte{
		"empty":             {},
		"method":            {7, 1, 0, 0, 'x'},
		"no runs":           {methodStored},
		"too many runs":     {methodStored, 0xff, 0xff, 0xff, 1},
		"runs are missing":  {methodStored, 2, 0, 0},
		"bytes are missing": {methodStored, 1, 0, 3, 'x', 'y', 'z'},
		"bytes too many":    {methodStored, 1, 0, 0, 'x', 'y'},
		"gap too long":      {methodStored, 1, 0x80, 0x80, 2, 0, 'x'},
		"run over the end":  {methodStored, 1, 0xff, 0xff, 1, 1, 'x', 'y'},
		"huge gap": {methodStored, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
			1, 0, 'x'},
		"no zstd":  {methodZstd, 1, 2, 3, 4},
		"too long": make([]byte, MaxEncoded+1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := Decode(dst, enc); !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v", err)
			}
		})
	}
	if err := Decode(dst[1:], []byte{methodStored, 1, 0, 0, 'x'}); err == nil {
		t.Error("decoded into a short slice")
	}
}

func FuzzDecode(f *testing.F) {
	text := bytes.Repeat([]byte("a window of a text, "), 100)
	for _, set := range []*Set{setOf(mark{1000, 1000}), setOf(mark{500, 5}, mark{50, 3})} {
		enc, err := Encode(text, set)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(enc)
	}
	f.Add([]byte{methodStored, 2, 0, 0, 5, 1, 'x', 'y', 'z'})
	f.Fuzz(func(t *testing.T, enc []byte) {
		backing := make([]byte, Size+64)
		err := Decode(backing[:Size:Size], enc)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error of another kind: %v", err)
		}
		if !bytes.Equal(backing[Size:], make([]byte, 64)) {
			t.Fatal("wrote behind dst")
		}
	})
}
