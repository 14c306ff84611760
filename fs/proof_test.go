package fs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/erofs"
	"github.com/mica-snapshotter/mica/index/targz"
)

// TestForgedTree: the index has all digests right, and one file shows another's bytes. No digest
// tells before the layer is whole; then the layer's own tree takes the forged one's place.
func TestForgedTree(t *testing.T) {
	for name, forge := range map[string]func(etc map[string]*erofs.Node){
		"another file's bytes": func(etc map[string]*erofs.Node) {
			etc["other"].Extents[0].Device = etc["big"].Extents[0].Device
		},
		"setuid":            func(etc map[string]*erofs.Node) { etc["big"].Mode |= 0o4000 },
		"one file too many": func(etc map[string]*erofs.Node) { etc["more"] = etc["big"] },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers(t)...)
			w.index(nil)
			honest := w.open(testDir(t), Auto)
			want := readTree(t, w.mountAll(honest)[0])

			w = newWorld(t, twoLayers(t)...)
			w.index(func(d *index.Draft) {
				if etc := d.Root.Children["etc"]; etc != nil {
					forge(etc.Children)
				}
			})
			root := testDir(t)
			table := w.open(root, Auto)
			dirs := w.mountAll(table)
			if got := readTree(t, dirs[0]); got == want {
				t.Fatal("the forged tree shows what the layer has: nothing is tested")
			}
			for _, v := range table.opened(false) {
				if err := v.proof.Prove(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the layer is complete and local", func() bool {
				for _, s := range table.Status() {
					if s.Mode != Local {
						return false
					}
				}
				return true
			})
			if got := readTree(t, dirs[0]); got != want {
				t.Errorf("a complete layer shows\n%s\nwant\n%s", got, want)
			}
			if err := table.Close(); err != nil {
				t.Fatal(err)
			}
			w.broken.Store(true)
			if got := readTree(t, w.mountAll(w.open(root, Auto))[0]); got != want {
				t.Errorf("after a restart the layer shows\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestForgedIndexOfAnotherLayer: the diffID that containerd takes from the image's config gives it
// away.
func TestForgedIndexOfAnotherLayer(t *testing.T) {
	two := twoLayers(t)
	w := newWorld(t, two...)
	// The index of layer 0 says it is of layer 1.
	w.index(func(d *index.Draft) {
		if d.Layer == w.layers[0] {
			d.Layer = w.layers[1]
		} else {
			d.Layer = w.layers[0]
		}
	})
	table := w.open(testDir(t), Auto)
	for i := range two {
		m, err := table.Mount(t.Context(), w.layer(i), nil)
		if err == nil {
			t.Errorf("layer %d: the index of another layer is mounted at %s", i, m.Dir)
		} else if !strings.Contains(err.Error(), "one of the two lies") {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

// TestForgedWindow: a span begins with another one's window, and its digest is that of what comes
// out. Each span is what the index says, and the layer is not what the image says.
func TestForgedWindow(t *testing.T) {
	w := newWorld(t, twoLayers(t)...)
	forged := false
	w.index(func(d *index.Draft) {
		if d.Layer != w.layers[0] {
			return
		}
		var windows bytes.Buffer
		if _, err := targz.Scan(t.Context(), bytes.NewReader(w.blobs[0]),
			targz.Options{Windows: &windows, SpanSize: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		var with []*index.Span
		for i := range d.Spans {
			if d.Spans[i].Window.Size > 0 {
				with = append(with, &d.Spans[i])
			}
		}
		s := with[0]
		for _, other := range with[1:] {
			s.Window = other.Window
			content := make([]byte, s.Size)
			window := windows.Bytes()[s.Window.Off:][:s.Window.Size]
			if err := s.Decode(content, w.blobs[0][s.Blob:][:s.BlobSize], window); err == nil {
				t.Fatal("another window gives the same bytes: nothing is tested")
			}
			s.Digest = sha256.Sum256(content)
			if s.Decode(content, w.blobs[0][s.Blob:][:s.BlobSize], window) == nil {
				forged = true
				return
			}
		}
	})
	if !forged {
		t.Fatal("no window could be forged")
	}
	root := testDir(t)
	table := w.open(root, Auto)
	dirs := w.mountAll(table)
	readTree(t, dirs[0])
	var err error
	eventually(t, "the layer is not given to containers any more", func() bool {
		_, err = table.Mount(t.Context(), w.layer(0), nil)
		return errors.Is(err, proof.ErrDisproved)
	})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if mode := table.Status()[0].Mode; mode == Local {
		t.Error("it is served by the kernel alone")
	}
}
