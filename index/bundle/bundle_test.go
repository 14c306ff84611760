package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/index"
	. "github.com/mica-snapshotter/mica/index/indextest"
)

// blobs is a written bundle.
type blobs struct {
	trees, windows bytes.Buffer
	raw            [][]byte // of the layers
}

// bundleOf bundles layers; layer i has windows of 100 bytes with the value i.
func bundleOf(t testing.TB, layers ...*Layer) *blobs {
	t.Helper()
	b := &blobs{}
	var in []Input
	for i, l := range layers {
		l.Draft.Layer = digest.FromString(fmt.Sprint(i))
		windows := bytes.NewBuffer(bytes.Repeat([]byte{byte(i)}, 100))
		b.raw = append(b.raw, l.Write(t))
		in = append(in, Input{Index: bytes.NewReader(b.raw[i]), Size: int64(len(b.raw[i])),
			Windows: windows})
	}
	if err := Write(&b.trees, &b.windows, in); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *blobs) open(t testing.TB) *Bundle {
	t.Helper()
	x, err := Open(bytes.NewReader(b.trees.Bytes()), int64(b.trees.Len()), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestBundle(t *testing.T) {
	layers := []*Layer{Nasty(), LayerOf(), LayerOf(File("big", strings.Repeat("b", 5000)))}
	b := bundleOf(t, layers...)
	if again := bundleOf(t, layers...); !bytes.Equal(b.trees.Bytes(), again.trees.Bytes()) ||
		!bytes.Equal(b.windows.Bytes(), again.windows.Bytes()) {
		t.Error("equal layers give other blobs")
	}
	x := b.open(t)
	if len(x.Layers()) != len(layers) {
		t.Fatalf("%d layers", len(x.Layers()))
	}
	for i, l := range x.Layers() {
		if l.Header != layers[i].Draft.Header {
			t.Errorf("layer %d: %+v, want %+v", i, l.Header, layers[i].Draft.Header)
		}
		var out bytes.Buffer
		if err := x.Extract(l.Layer, &out); err != nil || !bytes.Equal(out.Bytes(), b.raw[i]) {
			t.Errorf("layer %d: other bytes, %v", i, err)
		}
		want, err := OpenBytes(t, b.raw[i]).Spans()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := x.Spans(l.Layer); err != nil || !slices.Equal(got, want) {
			t.Errorf("layer %d: spans %v, %v", i, got, err)
		}
		windows := b.windows.Bytes()[l.Windows.Off:][:l.Windows.Size]
		if !bytes.Equal(windows, bytes.Repeat([]byte{byte(i)}, 100)) {
			t.Errorf("layer %d: windows of another layer", i)
		}
	}
	if err := x.Extract(digest.FromString("none"), io.Discard); err == nil ||
		!strings.Contains(err.Error(), "not in the bundle") {
		t.Errorf("layer that is not there: %v", err)
	}
	if _, err := x.Spans(digest.FromString("none")); err == nil {
		t.Error("spans of a layer that is not there")
	}
}

// TestBundleDigests: an index of an older writer, with content digests behind its windows, is
// bundled and extracted as it is.
func TestBundleDigests(t *testing.T) {
	for name, pack := range map[string]bool{"packed": true, "not packed": false} {
		t.Run(name, func(t *testing.T) {
			l := LayerOf(File("a", "a"))
			if !pack {
				l = Wide(maxPackedFiles)
			}
			old, digests := l.Write(t), bytes.Repeat([]byte{7}, 72)
			at := old[SectionAt+3*48:]
			binary.LittleEndian.PutUint64(at[8:], uint64(len(digests)))
			sum := sha256.Sum256(digests)
			copy(at[16:], sum[:])
			Resign(old)
			if err := index.Check(t.Context(), OpenBytes(t, old)); err != nil {
				t.Fatal(err)
			}
			last := LayerOf(File("b", "b"))
			last.Draft.Layer = digest.FromString("last")
			files := [][]byte{old, last.Write(t)}
			windows := []string{
				strings.Repeat("w", 100) + string(digests), strings.Repeat("v", 100),
			}
			var in []Input
			for i, b := range files {
				in = append(in, Input{
					Index: bytes.NewReader(b), Size: int64(len(b)),
					Windows: strings.NewReader(windows[i]),
				})
			}
			var b blobs
			if err := Write(&b.trees, &b.windows, in); err != nil {
				t.Fatal(err)
			}
			x := b.open(t)
			for i, l := range x.Layers() {
				var out bytes.Buffer
				err := x.Extract(l.Layer, &out)
				if err != nil || !bytes.Equal(out.Bytes(), files[i]) {
					t.Errorf("layer %d: other bytes, %v", i, err)
				}
				got := b.windows.String()[l.Windows.Off:][:l.Windows.Size]
				if got != windows[i][:100] {
					t.Errorf("layer %d: windows %q", i, got)
				}
			}
			if got := x.Layers()[0].Packed; got != pack {
				t.Errorf("packed: %v", got)
			}
		})
	}
}

// TestBundleRepeated: an image can have the same layer twice.
func TestBundleRepeated(t *testing.T) {
	raw := LayerOf(File("a", "a")).Write(t)
	in := func() Input {
		return Input{Index: bytes.NewReader(raw), Size: int64(len(raw)),
			Windows: bytes.NewReader(make([]byte, 100))}
	}
	var b blobs
	if err := Write(&b.trees, &b.windows, []Input{in(), in()}); err != nil {
		t.Fatal(err)
	}
	if n := len(b.open(t).Layers()); n != 1 || b.windows.Len() != 100 {
		t.Errorf("%d layers, %d bytes of windows", n, b.windows.Len())
	}
}

func TestBundleWindowsRefused(t *testing.T) {
	l := LayerOf(File("big", strings.Repeat("b", 5000)))
	raw := l.Write(t)
	for name, windows := range map[string]string{
		"none": "", "too short": strings.Repeat("w", 99), "too long": strings.Repeat("w", 101),
	} {
		t.Run(name, func(t *testing.T) {
			err := Write(io.Discard, io.Discard,
				[]Input{{Index: bytes.NewReader(raw), Size: int64(len(raw)),
					Windows: strings.NewReader(windows)}})
			if err == nil || !strings.Contains(err.Error(), "has to be 100 bytes") {
				t.Error(err)
			}
		})
	}
}

func TestBundleRefused(t *testing.T) {
	good := bundleOf(t, LayerOf(File("a", "a")), LayerOf(File("b", "b")))
	le := binary.LittleEndian
	record := func(b []byte, i int) []byte { return b[headSize+i*recordSize:] }
	for name, c := range map[string]struct {
		forge func(b []byte) []byte
		lim   Limits
		want  string
	}{
		"short": {forge: func(b []byte) []byte { return b[:60] },
			want: "bundle of 60 bytes"},
		"magic": {forge: func(b []byte) []byte { b[0]++; return b }, want: "not a bundle"},
		"newer": {forge: func(b []byte) []byte { b[8] = 4; return b },
			want: "bundle version 4 is newer than this mica understands (3): upgrade mica"},
		"layers": {forge: func(b []byte) []byte { le.PutUint32(b[12:], 1<<31); return b },
			want: "over the limit of 1000 (Limits.Layers)"},
		"limit": {lim: Limits{Layers: 1}, want: "over the limit of 1 (Limits.Layers)"},
		"index limit": {lim: Limits{IndexSize: 2000},
			want: "over the limit of 2000 (Limits.IndexSize)"},
		"index size": {forge: func(b []byte) []byte {
			le.PutUint64(record(b, 0)[160:],
				1<<40)
			return b
		}, want: "(Limits.IndexSize)"},
		"count": {forge: func(b []byte) []byte { le.PutUint32(b[12:], 900); return b },
			want: "900 layers in a bundle"},
		"twice": {forge: func(b []byte) []byte {
			copy(record(b, 1)[:72],
				record(b, 0)[:72])
			return b
		}, want: "twice"},
		"frame": {forge: func(b []byte) []byte { record(b, 0)[200]++; return b },
			want: "frame at"},
		"frame size": {forge: func(b []byte) []byte {
			le.PutUint64(record(b, 1)[208:],
				1<<62)
			return b
		}, want: "frame at"},
		"cut": {forge: func(b []byte) []byte { return b[:len(b)-1] }, want: "frame at"},
		"windows": {forge: func(b []byte) []byte { record(b, 1)[216]++; return b },
			want: "windows at"},
		"windows size": {forge: func(b []byte) []byte {
			le.PutUint64(record(b, 1)[224:],
				1<<62)
			return b
		}, want: "record"},
		"reserved": {forge: func(b []byte) []byte { record(b, 1)[250] = 1; return b },
			want: "record"},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(good.trees.Bytes())
			if c.forge != nil {
				b = c.forge(b)
			}
			if _, err := Open(bytes.NewReader(b), int64(len(b)), c.lim); err == nil ||
				!strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// TestExtractRefused: what a frame holds has to be what the table says.
func TestExtractRefused(t *testing.T) {
	good := bundleOf(t, LayerOf(File("a", "a")))
	le := binary.LittleEndian
	for name, forge := range map[string]func(b []byte){
		"frame":       func(b []byte) { b[len(b)-10] ^= 4 },
		"larger":      func(b []byte) { b[headSize+160]++ },
		"smaller":     func(b []byte) { b[headSize+161]-- },
		"diffID":      func(b []byte) { b[headSize+72+20]++ },
		"layer size":  func(b []byte) { b[headSize+144]++ },
		"windows":     func(b []byte) { le.PutUint64(b[headSize+224:], 50) },
		"window size": func(b []byte) { copy(b[headSize+recordSize:], "\x28\xb5\x2f\xfd\x04\xff") },
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(good.trees.Bytes())
			forge(b)
			x, err := Open(bytes.NewReader(b), int64(len(b)), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if err := x.Extract(x.Layers()[0].Layer, io.Discard); !errors.Is(err,
				index.ErrCorrupt) {
				t.Error(err)
			}
			// the decoder that met it is used again
			good := bundleOf(t, Nasty()).open(t)
			if err := good.Extract(good.Layers()[0].Layer, io.Discard); err != nil {
				t.Errorf("a good one after it: %v", err)
			}
		})
	}
}

// TestExtractTogether: indexes are extracted in several goroutines, which hand on decoders, nodes
// and extents to each other, and each meets a damaged frame in between.
func TestExtractTogether(t *testing.T) {
	b := bundleOf(t, Nasty(), Wide(3000),
		LayerOf(File("d/a", "a"), Pieced("p", 5000, OnDevice(512, strings.Repeat("d", 512)))))
	bad := bytes.Clone(b.trees.Bytes())
	last := b.open(t).Layers()[2]
	bad[last.Frame.Off+last.Frame.Size-10] ^= 4
	broken, err := Open(bytes.NewReader(bad), int64(len(bad)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	good := b.open(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for round := range 20 {
				at := (i + round) % 3
				var out bytes.Buffer
				if err := good.Extract(good.Layers()[at].Layer, &out); err != nil ||
					!bytes.Equal(out.Bytes(), b.raw[at]) {
					t.Errorf("layer %d: other bytes, %v", at, err)
				}
				if err := broken.Extract(last.Layer, io.Discard); !errors.Is(err,
					index.ErrCorrupt) {
					t.Errorf("broken frame: %v", err)
				}
			}
		})
	}
	all.Wait()
}
