package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// packable are layers with everything that a tree can have.
func packable() map[string]*Layer {
	out := map[string]*Layer{"nasty": Nasty(), "empty": LayerOf(), "many": Wide(3000)}
	for i, l := range Small() {
		out[string(rune('a'+i))] = l
	}
	windows := LayerOf(File("big", strings.Repeat("b", 20_000)))
	for i := range windows.Draft.Spans {
		if s := &windows.Draft.Spans[i]; i%2 == 1 {
			s.Codec, s.Bit, s.Window = index.Deflate, uint8(i), index.Range{Off: int64(i), Size: 1}
			if i%4 == 1 {
				s.WindowDigest = sha256.Sum256([]byte{byte(i)}) // as older versions wrote it
			}
		}
	}
	if n := len(windows.Draft.Spans); n < 4 {
		panic(fmt.Sprintf("%d spans: windows with and without a digest are not tested", n))
	}
	out["windows"] = windows
	return out
}

// TestPack: what is packed comes back as the same file.
func TestPack(t *testing.T) {
	for name, l := range packable() {
		t.Run(name, func(t *testing.T) {
			b := bundleOf(t, l)
			x := b.open(t)
			if !x.Layers()[0].Packed {
				t.Error("not packed")
			}
			var out bytes.Buffer
			if err := x.Extract(x.Layers()[0].Layer, &out); err != nil ||
				!bytes.Equal(out.Bytes(), b.raw[0]) {
				t.Errorf("other bytes, %v", err)
			}
			if err := index.Check(t.Context(), OpenBytes(t, out.Bytes())); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNotPacked: what cannot be packed, or would come back as another file, travels as it is.
func TestNotPacked(t *testing.T) {
	odd, large := LayerOf(File("a", strings.Repeat("a", 10_000))), Wide(maxPackedFiles)
	foreign := odd.Write(t)
	// the digest of a window that is not there
	foreign[binary.LittleEndian.Uint64(foreign[SectionAt+48:])+48] = 1
	for name, l := range map[string]*Layer{"too many files": large, "from another writer": odd} {
		raw := l.Write(t)
		if l == odd {
			raw = Resign(foreign)
		}
		if err := index.Check(t.Context(), OpenBytes(t, raw)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var trees, windows bytes.Buffer
		apart := bytes.NewReader(make([]byte, l.Draft.WindowsSize))
		if err := Write(&trees, &windows,
			[]Input{{Index: bytes.NewReader(raw), Size: int64(len(raw)),
				Windows: apart}}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := Open(bytes.NewReader(trees.Bytes()), int64(trees.Len()), Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var out bytes.Buffer
		if err := b.Extract(b.Layers()[0].Layer, &out); err != nil ||
			!bytes.Equal(out.Bytes(), raw) {
			t.Errorf("%s: other bytes, %v", name, err)
		}
		if b.Layers()[0].Packed {
			t.Errorf("%s: packed", name)
		}
		b.layers[0].IndexDigest[2]++ // which nothing else stands for here
		if err := b.Extract(b.Layers()[0].Layer, io.Discard); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%s, with another digest in the table: %v", name, err)
		}
	}
}

// A frame is the same whatever its encoder has written before.
func TestEncoderKept(t *testing.T) {
	var kept encoder
	for i, l := range []*Layer{Nasty(), LayerOf(), Nasty()} {
		c := packed(t, l)
		var first, later bytes.Buffer
		err := new(encoder).compress(&first, c.size(), c.write)
		if err = errors.Join(err, kept.compress(&later, c.size(), c.write)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), later.Bytes()) {
			t.Errorf("frame %d is another one after others", i)
		}
	}
}

// packed returns the columns of a layer.
func packed(t testing.TB, l *Layer) *columns {
	t.Helper()
	c, err := pack(l.Write(t)[:index.HeaderSize], l.Open(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// encoded returns columns as a frame holds them, decompressed.
func (c *columns) encoded(t testing.TB) []byte {
	t.Helper()
	var frame bytes.Buffer
	if err := new(encoder).compress(&frame, c.size(), c.write); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := z.DecodeAll(frame.Bytes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnpackRefuses: columns with one thing that is wrong are corrupt.
func TestUnpackRefuses(t *testing.T) {
	build := func() *Layer {
		return LayerOf(Dir("d"), File("d/a", "a"), File("d/b", "b", Xattr("user.n", "v")),
			Hardlink("d/c", "d/a"), Symlink("s", "t"),
			Node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), Pieced("p", 5000,
				OnDevice(512, strings.Repeat("d", 512)), InTree(1024, strings.Repeat("t", 512))))
	}
	replace := func(col int, old, to string) func(c *columns) {
		return func(c *columns) {
			if bytes.Count(c[col], []byte(old)) != 1 {
				t.Fatalf("%q is not once in %q", old, c[col])
			}
			c[col] = bytes.Replace(c[col], []byte(old), []byte(to), 1)
		}
	}
	cases := map[string]func(c *columns){
		"other layer":        func(c *columns) { c[colHeader][40] ^= 1 },
		"header cut off":     func(c *columns) { c[colHeader] = c[colHeader][:index.HeaderSize-1] },
		"names out of order": replace(colNames, "a\x00b\x00", "b\x00a\x00"),
		"a name twice":       replace(colNames, "a\x00b\x00", "a\x00a\x00"),
		"dots":               replace(colNames, "a\x00b\x00", "..\x00b\x00"),
		"slash":              replace(colNames, "a\x00b\x00", "a\x00b/c\x00"),
		"long name": replace(colNames, "a\x00b\x00",
			"a\x00"+strings.Repeat("b", 256)+"\x00"),
		"other name":        replace(colNames, "null\x00", "zero\x00"),
		"target with other": replace(colTargets, "t", "u"),
		"empty target":      replace(colTargets, "t", ""),
		"link to nothing":   func(c *columns) { c[colLinks] = []byte{100} },
		"link to itself":    func(c *columns) { c[colLinks] = []byte{0} },
		"link to the root":  func(c *columns) { c[colLinks] = []byte{8} },
		"unknown kind":      func(c *columns) { c[colEntries][0] = 2 },
		"unknown mtime":     func(c *columns) { c[colTimes][0] = 9 },
		"unknown flag":      func(c *columns) { c[colKinds][0] = 0x80 },
		"the root a file":   func(c *columns) { c[colKinds][2] = 0x80 },
		"no type":           func(c *columns) { c[colKinds][2] = 0 },
		"far away":          func(c *columns) { c[colPlaces][0] = 0x7e },
		"before the device": func(c *columns) { c[colPlaces][0] = 0x7f },
		"more bytes": func(c *columns) {
			c[colNumbers] = append([]byte{1},
				c[colNumbers]...)
		},
		"other piece":     func(c *columns) { c[colPieces][0]++ },
		"more attributes": func(c *columns) { c[colXattrs][0]++ },
		"long value":      func(c *columns) { c[colXattrs][8] = 0x7f },
		"span too long":   func(c *columns) { c[colSpans][0]++ },
		"one more span": func(c *columns) {
			c[colSpans] = append(c[colSpans],
				c[colSpans]...)
		},
		"endless number":        func(c *columns) { c[colTimes] = bytes.Repeat([]byte{0xff}, 20) },
		"one more file's times": func(c *columns) { c[colTimes] = append(c[colTimes], 0) },
	}
	for i := range columnCount {
		if i == colHeader {
			continue
		}
		cases["cut off: "+string(rune('a'+i))] = func(c *columns) { c[i] = c[i][:len(c[i])-1] }
		cases["left over: "+string(rune('a'+i))] = func(c *columns) { c[i] = append(c[i], 0) }
	}
	size := int64(len(build().Write(t)))
	if _, err := unpack(new(bytes.Buffer), packed(t, build()), size); err != nil {
		t.Fatal(err)
	}
	for name, change := range cases {
		c := packed(t, build())
		for i := range c {
			c[i] = slices.Clone(c[i])
		}
		change(c)
		if _, err := unpack(new(bytes.Buffer), c, size); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := packed(t, build()).encoded(t)
	for n := range good {
		if _, err := readColumns(bytes.NewReader(good[:n])); !errors.Is(err, index.ErrCorrupt) {
			t.Fatalf("cut off after %d bytes: %v", n, err)
		}
	}
	if _, err := readColumns(bytes.NewReader(append(good, 0))); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := readColumns(bytes.NewReader(bytes.Repeat([]byte{0xff}, 100))); !errors.Is(err,
		index.ErrCorrupt) {
		t.Errorf("endless columns: %v", err)
	}
	deep := LayerOf(Dir(strings.Repeat("d/", 2000) + strings.Repeat("e", 96)))
	if _, err := unpack(new(bytes.Buffer), packed(t, deep),
		int64(len(deep.Write(t)))); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("path of 4096 bytes: %v", err)
	}
}

// FuzzUnpack makes index files of columns that came from anywhere: those that are made are ones
// that Check accepts, as nobody else checks them. Header and spans are right, which a forger can
// make as well; FuzzBundle has others.
func FuzzUnpack(f *testing.F) {
	device := LayerOf()
	device.Finish(1 << 20)
	spans := packed(f, device)
	for _, l := range packable() {
		if c := packed(f, l); c.size() < 64<<10 {
			f.Add(c[colEntries], c[colKinds], c[colLinks], c[colNames], c[colTimes], c[colMoments],
				c[colNumbers], c[colPlaces], c[colTargets], c[colXattrs], c[colPieces])
		}
	}
	f.Fuzz(func(t *testing.T, entries, kinds, links, names, times, moments, numbers, places,
		targets,
		xattrs, pieces []byte) {
		c := columns{
			colEntries: entries, colKinds: kinds, colLinks: links, colNames: names, colTimes: times,
			colMoments: moments, colNumbers: numbers, colPlaces: places, colTargets: targets,
			colXattrs: xattrs, colPieces: pieces, colSpans: spans[colSpans],
			colDigests: spans[colDigests],
		}
		a := newArena()
		defer a.release() // the next input finds nothing of this one
		u := newUnpacker(&c, a)
		d, err := u.draft()
		if err != nil {
			if !errors.Is(err, index.ErrCorrupt) {
				t.Fatalf("not ErrCorrupt: %v", err)
			}
			return
		}
		d.Header = device.Draft.Header
		out := buffer{left: 16 << 20}
		if _, err := index.Write(&out, d); err != nil || u.atEnd() != nil {
			return
		}
		x := OpenBytes(t, out.Bytes())
		sane := index.Check(context.Background(), x)
		c[colHeader] = out.Bytes()[:index.HeaderSize]
		var again bytes.Buffer
		_, err = unpack(&again, &c, int64(out.Len()))
		if (err == nil) != (sane == nil) || err == nil && !bytes.Equal(again.Bytes(), out.Bytes()) {
			t.Fatalf("the second time: %v; check: %v", err, sane)
		}
	})
}

// buffer is a buffer that refuses more than left bytes.
type buffer struct {
	bytes.Buffer
	left int
}

func (b *buffer) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("too much")
	}
	return b.Buffer.Write(p)
}
