package published

import (
	"archive/tar"
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/targz"
)

// bundleOf indexes layers, lowest first, that are plain tars of these files; a name that ends with / is a directory's, a value
// that begins with -> a symbolic link's.
func bundleOf(t *testing.T, layers ...map[string]string) *index.Bundle {
	t.Helper()
	var in []index.BundleInput
	for _, files := range layers {
		var blob, windows, file bytes.Buffer
		w := tar.NewWriter(&blob)
		for _, name := range []string{"a", "etc", "etc/group", "etc/passwd"} {
			content, ok := files[name]
			if !ok {
				continue
			}
			h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
			if target, ok := strings.CutPrefix(content, "->"); ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(content)[:h.Size]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		draft, err := targz.Scan(t.Context(), &blob, targz.Options{Windows: &windows, SpanSize: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := index.Write(&file, draft); err != nil {
			t.Fatal(err)
		}
		if _, err := index.WriteDigests(&windows, draft); err != nil {
			t.Fatal(err)
		}
		in = append(in, index.BundleInput{Index: bytes.NewReader(file.Bytes()), Size: int64(file.Len()), Windows: &windows})
	}
	var trees, windows bytes.Buffer
	if err := index.WriteBundle(&trees, &windows, in); err != nil {
		t.Fatal(err)
	}
	b, err := index.OpenBundle(bytes.NewReader(trees.Bytes()), int64(trees.Len()), index.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRuntime: of what containerd reads, the topmost layer that has it is fetched, and nothing else.
func TestRuntime(t *testing.T) {
	large := string(make([]byte, 200<<10)) // pushes what follows into a span of its own
	base := map[string]string{"a": large, "etc/group": "root:x:0:", "etc/passwd": "root:x:0:0::/:"}
	for name, c := range map[string]struct {
		layers []map[string]string
		want   []int // layers that something is fetched of
	}{
		"one layer":        {[]map[string]string{base}, []int{0}},
		"both above":       {[]map[string]string{base, {"etc/group": "g", "etc/passwd": "p"}, {"a": "a"}}, []int{1}},
		"one above":        {[]map[string]string{base, {"etc/passwd": "p"}, {"a": "a"}}, []int{0, 1}},
		"links":            {[]map[string]string{base, {"etc/group": "->g", "etc/passwd": "->p"}}, nil},
		"directory a link": {[]map[string]string{base, {"etc": "->a"}}, nil},
		"empty":            {[]map[string]string{base, {"etc/group": "", "etc/passwd": ""}}, nil},
		"neither":          {[]map[string]string{{"a": "a"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := bundleOf(t, c.layers...)
			ranges, err := Runtime(b, ocispec.Descriptor{Digest: blobA, Size: 100})
			if err != nil {
				t.Fatal(err)
			}
			var got []digest.Digest
			for _, r := range ranges {
				l, ok := b.Layer(r.Blob)
				if !ok || r.BlobSize != l.LayerSize {
					t.Errorf("range %+v of no layer", r)
				}
				if r.Blob == b.Layers()[0].Layer && (r.Off < 64<<10 || r.Size > 100<<10) {
					t.Errorf("range %+v of the lowest layer, which has the files at its end", r)
				}
				got = append(got, r.Blob)
			}
			var want []digest.Digest
			for _, i := range c.want {
				want = append(want, b.Layers()[i].Layer)
			}
			slices.Sort(got)
			slices.Sort(want)
			if got = slices.Compact(got); !slices.Equal(got, want) {
				t.Errorf("ranges of %v, want of %v", got, want)
			}
		})
	}
}
