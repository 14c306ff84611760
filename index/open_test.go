package index_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

func TestOpenRefuses(t *testing.T) {
	good := Nasty().Write(t)
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		forge func(b []byte) []byte
		want  string
	}{
		"short":  {func(b []byte) []byte { return b[:1000] }, "corrupt"},
		"cut":    {func(b []byte) []byte { return b[:len(b)-1] }, "the file has"},
		"longer": {func(b []byte) []byte { return append(b, 0) }, "the file has"},
		"magic": {func(b []byte) []byte { b[0]++; return Resign(b) },
			"not an index file"},
		"newer": {func(b []byte) []byte { le.PutUint32(b[8:], 7); return b },
			"index version 7 is newer than this mica understands (1): upgrade mica"},
		"bit":      {func(b []byte) []byte { b[180] ^= 1; return b }, "header checksum"},
		"flags":    {func(b []byte) []byte { b[12] = 1; return Resign(b) }, "reserved"},
		"reserved": {func(b []byte) []byte { b[1000] = 1; return Resign(b) }, "reserved"},
		"digest": {func(b []byte) []byte { b[32] = 9; return Resign(b) },
			"digest algorithm"},
		"device size": {func(b []byte) []byte {
			le.PutUint64(b[184:],
				1<<60)
			return Resign(b)
		}, "addresses at most"},
		"sections": {func(b []byte) []byte {
			le.PutUint64(b[SectionAt+SectionSize:],
				1<<60)
			return Resign(b)
		}, "section 1"},
		"section size": {func(b []byte) []byte {
			le.PutUint64(b[SectionAt+8:],
				1<<63)
			return Resign(b)
		}, "section 0"},
		"superblock": {func(b []byte) []byte { b[superOffset+80] ^= 2; return Resign(b) },
			"superblock"},
		"root nid": {func(b []byte) []byte { b[superOffset+14]++; return Resign(b) },
			"superblock"},
		"size of device": {func(b []byte) []byte { b[slotOffset+64]++; return Resign(b) },
			"superblock"},
		"content digests": {func(b []byte) []byte { b[SectionAt+3*SectionSize]++; return Resign(b) }, "content digests"},
		"negative windows": {func(b []byte) []byte {
			le.PutUint64(b[192:],
				1<<63)
			return Resign(b)
		}, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.forge(bytes.Clone(good))
			_, err := index.Open(bytes.NewReader(b), int64(len(b)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
			if newer := name == "newer"; errors.Is(err, index.ErrNewer) != newer ||
				errors.Is(err, index.ErrCorrupt) == newer {
				t.Errorf("%v is neither or both of newer and corrupt", err)
			}
		})
	}
}

// TestVerify: a bit that turns anywhere in the file is found.
func TestVerify(t *testing.T) {
	good := LayerOf(File("a", "content"), Implicit("b/c")).Write(t)
	for at := range good {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		x, err := index.Open(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			err = x.Verify(context.Background())
		}
		if err == nil {
			t.Fatalf("byte %d changed, nobody noticed", at)
		}
	}
}

func TestSpansRefused(t *testing.T) {
	good := LayerOf(File("a", strings.Repeat("x", 10000)))
	for name, forge := range map[string]func(s []index.Span){
		"gap":           func(s []index.Span) { s[1].Device += 512 },
		"order":         func(s []index.Span) { s[0], s[1] = s[1], s[0] },
		"empty":         func(s []index.Span) { s[0].Size = 0 },
		"too large":     func(s []index.Span) { s[0].Size = index.MaxSpanSize + 1 },
		"blob":          func(s []index.Span) { s[1].Blob = 1 << 40 },
		"negative blob": func(s []index.Span) { s[0].Blob = -1 },
		"blob order":    func(s []index.Span) { s[2].Blob = 0 },
		"blob size":     func(s []index.Span) { s[0].BlobSize = 0 },
		"codec":         func(s []index.Span) { s[0].Codec = 200 },
		"stored size":   func(s []index.Span) { s[0].BlobSize-- },
		"bit":           func(s []index.Span) { s[0].Bit = 8 },
		"stored bit":    func(s []index.Span) { s[0].Bit = 1 },
		"window":        func(s []index.Span) { s[0].Codec = index.Deflate; s[0].Window = index.Range{90, 11} },
		"window size": func(s []index.Span) {
			s[0].Codec = index.Deflate
			s[0].Window = index.Range{0, index.MaxWindowSize + 1}
		},
		"stored window": func(s []index.Span) { s[0].Window = index.Range{0, 1} },
		"short":         func(s []index.Span) { s[len(s)-1].Size -= 512; s[len(s)-1].BlobSize -= 512 },
	} {
		t.Run(name, func(t *testing.T) {
			d := good.Draft
			d.Spans = append([]index.Span{}, d.Spans...)
			forge(d.Spans)
			if _, err := index.Write(new(bytes.Buffer), &d); err == nil {
				t.Error("Write takes it")
			}
			b := good.Write(t)
			off := binary.LittleEndian.Uint64(b[SectionAt+SectionSize:])
			var table []byte
			for i := range d.Spans {
				table = index.AppendSpan(&d.Spans[i], table)
			}
			copy(b[off:], table)
			if _, err := OpenBytes(t, Resign(b)).Spans(); !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("Spans: %v", err)
			}
		})
	}
}

func TestSpansFind(t *testing.T) {
	s, err := Nasty().Open(t).Spans()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range s {
		for off, want := range map[int64]int{p.Device - 1: i - 1, p.Device: i,
			p.Device + p.Size - 1: i} {
			if got := s.Find(off); got != want {
				t.Fatalf("Find(%d) = %d, want %d", off, got, want)
			}
		}
	}
	last := s[len(s)-1]
	if got := s.Find(last.Device + last.Size); got != -1 {
		t.Errorf("behind the end: %d", got)
	}
}
