package profile

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

var update = flag.Bool("update", false, "write the golden files")

// golden is the profile of testdata/golden.profile and golden.json.
func golden() *Profile {
	return runs(9,
		times(9, at(0, layerA, 2, 2)),
		times(8, at(7*ms, layerB, 0, 16)),
		times(5, at(7*ms, digest.SHA512.FromString("c"), 1<<20, 1)),
		times(9, at(1234*ms, layerA, 0, 1)),
		times(1, at(3*ms, layerA, 100, 7)),
	)
}

func TestGolden(t *testing.T) {
	want := golden()
	encoded, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	exported, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"testdata/golden.profile": encoded,
		"testdata/golden.json": append(exported, '\n')} {
		if *update {
			if err := os.WriteFile(name, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		kept, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Import(kept, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantProfile(t, got, want)
		if name == "testdata/golden.json" && !bytes.Equal(kept, b) {
			t.Errorf("the exported form has changed:\n%s", b)
		}
		if name == "testdata/golden.profile" && !bytes.Equal(unpack(t, kept), unpack(t, b)) {
			t.Errorf("the encoded form has changed:\n%x", unpack(t, b))
		}
	}
}

// unpack returns the body of an encoded profile: what zstd makes of it may change.
func unpack(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	body, err := z.DecodeAll(b[len(magic)+1:], nil)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestEncodeRoundTrip(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 2))
		p := Merge(randomRun(rng), randomRun(rng), randomRun(rng))
		if seed%2 == 1 && len(p.Ranges) > 0 { // odd offsets, as other tools' hints have them
			p.Ranges[0].Size -= 1 + rng.Int64N(BlockSize-1)
		}
		b, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b, Limits{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		wantProfile(t, got, p)
		again, err := got.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("seed %d: encoded differently the second time (%v)", seed, err)
		}
		exported, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = Import(exported, Limits{}); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		wantProfile(t, got, p)
	}
}

// The largest profile that is kept keeps to the default limits.
func TestEncodeLargest(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	p := runs(MaxRuns)
	var off int64
	for range MaxRanges {
		off += (2 + rng.Int64N(20)) * BlockSize
		p.Ranges = append(p.Ranges,
			Range{layerA, off, BlockSize, time.Duration(rng.IntN(60000)) * ms,
				1 + rng.IntN(MaxRuns)})
	}
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b, Limits{}); err != nil {
		t.Error(err)
	}
	if len(b) > 1<<20 {
		t.Errorf("it takes %d bytes", len(b))
	}
}

func TestEncodeRefuses(t *testing.T) {
	if _, err := run(at(0, layerA, 0, 2), at(0, layerA, 1, 1)).Encode(); !errors.Is(err,
		ErrInvalid) {
		t.Errorf("overlapping ranges: %v", err)
	}
}

// pack makes an encoded profile of any body.
func pack(t testing.TB, body []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(body, append([]byte(magic), version))
}

func TestDecodeRefuses(t *testing.T) {
	good, err := golden().Encode()
	if err != nil {
		t.Fatal(err)
	}
	body := golden().body()
	head := appendDigest(nil, manifest)
	numbers := func(n ...uint64) []byte {
		b := bytes.Clone(head)
		for _, v := range n {
			b = binary.AppendUvarint(b, v)
		}
		return pack(t, b)
	}
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1] ^= 1 // the checksum
	future := bytes.Clone(good)
	future[len(magic)]++
	unsized := append([]byte(magic), version, 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00, 1, 0, 0)
	for name, c := range map[string]struct {
		in  []byte
		lim Limits
	}{
		"nothing":         {in: nil},
		"magic alone":     {in: []byte(magic)},
		"other magic":     {in: []byte("MICATREE and more")},
		"version":         {in: future},
		"no frame":        {in: good[:len(magic)+1]},
		"cut":             {in: good[:len(good)-9]},
		"damaged":         {in: damaged},
		"unsized":         {in: unsized},
		"too long":        {in: good, lim: Limits{Encoded: len(good) - 1}},
		"bomb":            {in: pack(t, make([]byte, 64<<20))},
		"body cut":        {in: pack(t, body[:len(body)-1])},
		"body too long":   {in: pack(t, append(bytes.Clone(body), 0))},
		"empty body":      {in: pack(t, nil)},
		"algorithm":       {in: pack(t, append([]byte{9}, body[1:]...))},
		"algorithm 0":     {in: pack(t, append([]byte{0}, body[1:]...))},
		"no runs":         {in: numbers(0, 0, 0, 0)},
		"shift":           {in: numbers(1, 17, 0, 0)},
		"many layers":     {in: numbers(1, 0, 1<<40, 0)},
		"many ranges":     {in: numbers(1, 0, 0, 1<<40)},
		"missing columns": {in: numbers(1, 0, 0, 1<<17)},
		"no such layer":   {in: numbers(1, 0, 0, 1, 0, 0, 0, 0, 0)},
		"few ranges":      {in: good, lim: Limits{Ranges: 4}},
		"few layers":      {in: good, lim: Limits{Layers: 2}},
	} {
		if p, err := Decode(c.in, c.lim); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"no JSON":     `{`,
		"version":     `{"version":2,"manifest":"` + manifest.String() + `","runs":1,"ranges":[]}`,
		"no manifest": `{"version":1,"runs":1,"ranges":[]}`,
		"late": `{"version":1,"manifest":"` + manifest.String() +
			`","runs":1,"ranges":[{"layer":"` + layerA.String() +
			`","offset":0,"size":1,"at_ms":9223372036854775807,"runs":1}]}`,
		"no size": `{"version":1,"manifest":"` + manifest.String() +
			`","runs":1,"ranges":[{"layer":"` + layerA.String() + `","runs":1}]}`,
		"other things": `{"version":1,"manifest":5}`,
	} {
		if p, err := Import([]byte(in), Limits{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	if _, err := Import([]byte(`{"version":1,`+string(make([]byte, 200))),
		Limits{Encoded: 10}); !errors.Is(err, ErrInvalid) {
		t.Errorf("too long: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	good, err := golden().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) { checkDecoded(t, b) })
}

// FuzzBody gets behind the compression, and its checksum.
func FuzzBody(f *testing.F) {
	f.Add(golden().body())
	f.Add(run().body())
	f.Fuzz(func(t *testing.T, body []byte) { checkDecoded(t, pack(t, body)) })
}

func FuzzImport(f *testing.F) {
	b, err := json.Marshal(golden())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := Import(b, Limits{}); err == nil {
			if err := p.Check(Limits{}); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	})
}

// checkDecoded checks that what Decode takes is a profile that comes back from Encode as it was.
func checkDecoded(t *testing.T, b []byte) {
	lim := Limits{Encoded: 1 << 16, Layers: 8, Ranges: 64}
	p, err := Decode(b, lim)
	if err != nil {
		if !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
		return
	}
	if err := p.Check(lim); err != nil {
		t.Fatal(err)
	}
	again, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	q, err := Decode(again, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	wantProfile(t, q, p)
	if m := Merge(p, p); m.Check(Limits{}) != nil {
		t.Error(m.Check(Limits{}))
	}
}
