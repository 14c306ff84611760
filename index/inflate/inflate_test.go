package inflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// inflate decodes a whole stream with output buffers of outStep bytes, keeping
// history, and input pieces of inStep bytes.
func inflate(src []byte, inStep, outStep int) ([]byte, int, error) {
	var d Decoder
	d.Reset(0)
	var out []byte
	read, given := 0, 0
	buf := make([]byte, outStep)
	w := 0
	for {
		nw, r, s, err := d.Decode(buf, w, src[read:given])
		if err != nil {
			return out, read, err
		}
		out = append(out, buf[w:nw]...)
		w = nw
		read += r
		switch s {
		case NeedInput:
			if given == len(src) {
				return out, read, io.ErrUnexpectedEOF
			}
			given = min(given+inStep, len(src))
		case OutputFull:
			hist := out[max(0, len(out)-windowSize):]
			d.SetHistory(bytes.Clone(hist))
			w = 0
		case StreamEnd:
			return out, read, nil
		}
	}
}

// reference decodes with the standard library.
func reference(src []byte) ([]byte, int, error) {
	in := bytes.NewReader(src)
	out, err := io.ReadAll(flate.NewReader(in))
	return out, len(src) - in.Len(), err
}

func checkSame(t *testing.T, src []byte) {
	t.Helper()
	want, wantRead, wantErr := reference(src)
	for _, step := range []struct{ in, out int }{{1 << 30, 1 << 20}, {1000, 777}, {1, 1 << 16},
		{1 << 30, 1}} {
		if step.out == 1 && len(want) > 500 {
			step.out = 33_000
		}
		if step.in == 1 && len(src) > 2000 {
			step.in = 500
		}
		got, read, err := inflate(src, step.in, step.out)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("steps %v: error %v, compress/flate has %v", step, err, wantErr)
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("steps %v: error of another kind: %v", step, err)
			}
			continue
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("steps %v: output differs (%d bytes, want %d)", step, len(got), len(want))
		}
		if read != wantRead {
			t.Fatalf("steps %v: read %d bytes, want %d", step, read, wantRead)
		}
	}
}

func deflate(t testing.TB, level int, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samples are data of different kinds.
func samples() map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	few := make([]byte, 300_000)
	for i := range few {
		few[i] = "acgt"[rnd.IntN(4)]
	}
	words := make([]byte, 0, 500_000)
	for len(words) < 480_000 {
		n := rnd.IntN(2000)
		words = append(words, noise[n:n+rnd.IntN(12)]...)
		words = append(words, " the quick brown fox"[:rnd.IntN(20)]...)
	}
	skew := make([]byte, 300_000)
	for i := range skew {
		skew[i] = byte(min(255, int(rnd.ExpFloat64()*9)))
	}
	farRep := append(bytes.Clone(noise[:windowSize]), noise[:windowSize]...)
	return map[string][]byte{
		"empty": nil,
		"one":   {42},
		"zeros": make([]byte, 700_000),
		"noise": noise,
		"few":   few,
		"words": words,
		"skew":  skew,
		"far":   append(farRep, farRep...),
		"cycle": bytes.Repeat([]byte("abcdefg"), 10_000),
		"two":   bytes.Repeat([]byte("ab"), 10_000),
	}
}

func TestLevels(t *testing.T) {
	for name, data := range samples() {
		t.Run(name, func(t *testing.T) {
			for _, level := range []int{-2, 0, 1, 4, 6, 9} {
				src := deflate(t, level, data)
				checkSame(t, append(src, "trailer"...))
				checkSame(t, src[:len(src)/2])
				checkSame(t, src[:len(src)-1])
			}
		})
	}
}

func FuzzInflate(f *testing.F) {
	for _, data := range samples() {
		data = data[:min(len(data), 5000)]
		f.Add(data, uint8(6), false)
		f.Add(deflate(f, 9, data), uint8(0), true)
	}
	f.Add([]byte{3, 0}, uint8(0), true)
	f.Fuzz(func(t *testing.T, data []byte, level uint8, raw bool) {
		if !raw {
			data = deflate(t, int(level%12)-2, data)
		}
		checkSame(t, data)
	})
}
