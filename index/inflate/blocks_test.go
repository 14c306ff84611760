package inflate

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// bitWriter writes a deflate stream by hand.
type bitWriter struct {
	out  []byte
	hold uint64
	n    uint
}

// bits writes the low n bits of v, lowest first.
func (b *bitWriter) bits(v uint64, n uint) *bitWriter {
	b.hold |= v << b.n
	for b.n += n; b.n >= 8; b.n -= 8 {
		b.out = append(b.out, byte(b.hold))
		b.hold >>= 8
	}
	return b
}

// code writes a Huffman code of n bits, highest first.
func (b *bitWriter) code(v uint32, n uint) *bitWriter { return b.bits(uint64(reverse(v, n)), n) }

// literal, length and dist write symbols of the fixed codes.
func (b *bitWriter) literal(c byte) *bitWriter {
	if c < 144 {
		return b.code(0x30+uint32(c), 8)
	}
	return b.code(0x190+uint32(c)-144, 9)
}
func (b *bitWriter) length(symbol uint32) *bitWriter {
	if symbol < 280 {
		return b.code(symbol-256, 7)
	}
	return b.code(0xc0+symbol-280, 8)
}
func (b *bitWriter) dist(symbol uint32) *bitWriter { return b.code(symbol, 5) }
func (b *bitWriter) end() *bitWriter               { return b.code(0, 7) }

func (b *bitWriter) bytes() []byte {
	out := bytes.Clone(b.out)
	if b.n > 0 {
		out = append(out, byte(b.hold))
	}
	return out
}

// lengths writes a dynamic block's header: its code lengths are sent with a code
// of 4 bits for each of the lengths 0 to 15, without repeats.
func lengths(nlit, ndist int, lens map[int]int) *bitWriter {
	b := new(bitWriter)
	b.bits(1|2<<1, 3).bits(uint64(nlit-257), 5).bits(uint64(ndist-1), 5).bits(19-4, 4)
	for _, sym := range codeOrder {
		if sym < 16 {
			b.bits(4, 3)
		} else {
			b.bits(0, 3)
		}
	}
	for i := range nlit + ndist {
		b.code(uint32(lens[i]), 4)
	}
	return b
}

func TestBlocks(t *testing.T) {
	fixed := func() *bitWriter { return new(bitWriter).bits(1|1<<1, 3) }
	all := func(n, length int) map[int]int {
		m := make(map[int]int)
		for i := range n {
			m[i] = length
		}
		return m
	}
	tests := []struct {
		name string
		in   *bitWriter
		want string // the output, or with err a part of the error
		err  bool
	}{
		{"fixed, empty", fixed().end(), "", false},
		{"fixed", fixed().literal('a').literal(200).end(), "a\xc8", false},
		{"fixed, match", fixed().literal('a').length(257).dist(0).end(), "aaaa", false},
		{"fixed, longest match", fixed().literal('a').length(285).dist(0).end(),
			strings.Repeat("a", 259), false},
		{"258 in two ways", fixed().literal('a').length(284).bits(31, 5).dist(0).end(),
			strings.Repeat("a", 259), false},
		{"match before the start", fixed().literal('a').length(257).dist(1).end(), "too far", true},
		{"length symbol 286", fixed().literal('a').length(286).dist(0).end(), "code", true},
		{"distance symbol 30", fixed().literal('a').length(257).dist(30).bits(0, 60),
			"distance code", true},
		{"block type 3", new(bitWriter).bits(1|3<<1, 3).bits(0, 40), "type 3", true},
		{"stored", new(bitWriter).bits(1, 8).bits(3, 16).bits(0xfffc, 16).bits('x', 8).bits('y',
			8).bits('z', 8), "xyz", false},
		{"stored, empty, then fixed",
			new(bitWriter).bits(0, 8).bits(0, 16).bits(0xffff, 16).bits(3,
				3).literal('q').end(), "q", false},
		{"stored, wrong length", new(bitWriter).bits(1, 8).bits(3, 16).bits(0xfffd, 16).bits(0, 40),
			"stored", true},
		{"287 literal codes", lengths(287, 1, nil), "number", true},
		{"31 distance codes", lengths(257, 31, nil), "number", true},
		{"no codes at all", lengths(257, 1, nil).bits(0, 60), "code", true},
		{"one literal code: the end", lengths(257, 1, map[int]int{256: 1}).code(0, 1), "", false},
		{"one literal code: its other half",
			lengths(257, 1, map[int]int{256: 1}).code(1, 1).bits(0, 60), "code", true},
		{"one literal code of two bits", lengths(257, 1, map[int]int{256: 2}).bits(0, 60),
			"literal and length", true},
		{"over-subscribed", lengths(257, 1, all(257, 7)).bits(0, 60), "literal and length", true},
		{"incomplete", lengths(257, 1, all(257, 9)).bits(0, 60), "literal and length", true},
		{"incomplete distances", lengths(257, 2, map[int]int{0: 1, 256: 1, 257: 2, 258: 2}).bits(0,
			60), "distance code", true},
		{
			"one distance code", // a, match of 3 at distance 1, end
			lengths(258, 1, map[int]int{97: 2, 256: 2, 257: 1, 258: 1}).code(2, 2).code(0,
				1).code(0, 1).code(3, 2), "aaaa", false,
		},
		{
			"one distance code: its other half",
			lengths(258, 1, map[int]int{97: 2, 256: 2, 257: 1, 258: 1}).code(2, 2).code(0,
				1).code(1, 1).bits(0, 60), "distance code", true,
		},
		{
			"long codes", // 1 to 15 bits: the end has 15
			func() *bitWriter {
				lens := map[int]int{256: 15, 14: 15}
				for i := range 14 {
					lens[i] = i + 1
				}
				return lengths(257, 1, lens).code(0, 1).code(0x3ffe, 14).code(0x7ffe, 15).code(0,
					1).code(0x7fff, 15)
			}(), "\x00\x0d\x0e\x00", false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := tt.in.bytes()
			got, _, err := inflate(src, 1<<30, 1<<16)
			if tt.err {
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error %v, want one with %q", err, tt.want)
				}
			} else if err != nil || string(got) != tt.want {
				t.Fatalf("got %q, %v; want %q", got, err, tt.want)
			}
			checkSame(t, src)
		})
	}
}

// TestFarthest: a match may reach the first byte of a full history, and no more.
func TestFarthest(t *testing.T) {
	// A match of 3 at distance 24577 + 8191 = 32768.
	src := new(bitWriter).bits(3, 3).length(257).dist(29).bits(8191, 13).end().bytes()
	hist := bytes.Repeat([]byte("."), windowSize)
	copy(hist, "xyz")
	for _, tt := range []struct {
		hist []byte
		want string
	}{
		{hist, "xyz"},
		{append([]byte("ab"), hist...), "xyz"},
		{hist[1:], ""},
		{nil, ""},
	} {
		var d Decoder
		d.Reset(0)
		d.SetHistory(tt.hist)
		dst := make([]byte, 3)
		w, _, _, err := d.Decode(dst, 0, src)
		if tt.want == "" {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("history of %d: error %v", len(tt.hist), err)
			}
		} else if err != nil || string(dst[:w]) != tt.want {
			t.Errorf("history of %d: %q, %v", len(tt.hist), dst[:w], err)
		}
	}
}

// TestBlockStarts: a stream decodes from every block's start with nothing but the
// bytes that Refs names, whatever the sizes of the buffers.
func TestBlockStarts(t *testing.T) {
	for name, data := range samples() {
		for _, level := range []int{1, 6} {
			src := deflate(t, level, data)
			var d Decoder
			d.Reset(0)
			d.StopAtBlocks = true
			out := make([]byte, len(data)+1)
			w, at, blocks := 0, 0, 0
			for {
				nw, r, s, err := d.Decode(out, w, src[at:])
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				w = nw
				at += r
				if s == StreamEnd {
					break
				}
				if s != BlockStart {
					t.Fatalf("%s: status %d", name, s)
				}
				blocks++
				fromBlock(t, src[at:], d.Bit(), out[:w], data[w:])
			}
			if !bytes.Equal(out[:w], data) {
				t.Fatalf("%s: differs", name)
			}
			if len(data) > 400_000 && level == 6 && name != "zeros" && blocks < 2 {
				t.Errorf("%s: %d blocks: nothing is tested", name, blocks)
			}
		}
	}
}

func fromBlock(t *testing.T, src []byte, bit uint8, before, want []byte) {
	t.Helper()
	var d Decoder
	d.Reset(bit)
	d.Track = true
	d.SetHistory(before)
	first := make([]byte, min(len(want), windowSize)+777)
	if _, _, _, err := d.Decode(first, 0, src); err != nil {
		t.Fatal(err)
	}
	hist := make([]byte, windowSize)
	for _, r := range d.Refs {
		if r.Back < 1 || r.Size < 1 || r.Size > r.Back || int(r.Back) > len(before) {
			t.Fatalf("reference %+v", r)
		}
		copy(hist[windowSize-r.Back:][:r.Size], before[len(before)-int(r.Back):])
	}
	if len(d.Refs) == 0 {
		hist = nil
	}
	d.Refs = nil
	d.Track = false
	d.Reset(bit)
	d.SetHistory(hist)
	got := make([]byte, len(want))
	w, _, _, err := d.Decode(got, 0, src)
	if err != nil || w != len(want) || !bytes.Equal(got, want) {
		t.Fatalf("from a block at %d: %d of %d bytes, %v", len(before), w, len(want), err)
	}
}
