package published

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var blobA, blobB = digest.FromString("a"), digest.FromString("b")

func referrer(t testing.TB, ranges []BlobRange, copied []byte) ocispec.Descriptor {
	t.Helper()
	a, err := New(profileOf(3), made)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Early(ranges, copied); err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{Digest: subject.Digest, Annotations: a.Manifest(subject).Annotations}
}

func TestEarlyRoundTrip(t *testing.T) {
	ranges := []BlobRange{{blobA, 1000, 0, 10}, {blobB, 1 << 40, 1<<40 - 7, 7}, {blobA, 1000, 500, 500}}
	copied := bytes.Repeat([]byte("x"), 10+7+500)
	for _, want := range []Early{
		{Ranges: ranges},
		{Ranges: ranges, Copy: ocispec.Descriptor{MediaType: MediaTypeCopy, Digest: digest.FromBytes(copied), Size: 517}},
	} {
		got, err := EarlyRanges(referrer(t, ranges, copied[:want.Copy.Size]))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	large := []BlobRange{{blobB, 1 << 40, 0, MaxCopy}}
	if got, err := EarlyRanges(referrer(t, large, copied)); err != nil || !slices.Equal(got.Ranges, large) || got.Copy.Size != MaxCopy {
		t.Errorf("a large copy: %+v, %v", got, err)
	}
	for name, ranges := range map[string][]BlobRange{"none": nil, "too many": make([]BlobRange, maxEarlyRanges+1)} {
		if d := referrer(t, ranges, copied); d.Annotations[annotationEarly] != "" {
			t.Errorf("%s: says %q", name, d.Annotations[annotationEarly])
		}
	}
	if got, err := EarlyRanges(ocispec.Descriptor{}); len(got.Ranges) != 0 || err != nil {
		t.Errorf("without the annotation: %v, %v", got, err)
	}
	// A registry keeps what a manifest names.
	a, err := New(profileOf(3), made)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Early(ranges, copied); err != nil {
		t.Fatal(err)
	}
	if got := a.Manifest(subject).Layers; len(got) != 2 || got[1].Digest != digest.FromBytes(copied) || !bytes.Equal(a.Copied, copied) {
		t.Errorf("the manifest names %v", got)
	}
	if err := a.Early(make([]BlobRange, maxEarlyRanges+1), copied); err != nil {
		t.Fatal(err)
	}
	if got := a.Manifest(subject).Layers; len(got) != 1 || a.Copied != nil {
		t.Errorf("a copy of ranges that are not said: %v", got)
	}
}

func TestJoin(t *testing.T) {
	a := func(off, size int64) BlobRange { return BlobRange{blobA, 1 << 20, off, size} }
	b := func(off, size int64) BlobRange { return BlobRange{blobB, 1 << 20, off, size} }
	const gap, most = earlyGap, 300 << 10
	for name, c := range map[string]struct{ in, want []BlobRange }{
		"nothing":             {nil, nil},
		"neighbours":          {[]BlobRange{a(0, 10), b(5, 1), a(10, 20)}, []BlobRange{a(0, 30), b(5, 1)}},
		"near":                {[]BlobRange{a(0, 10), a(10+gap, 20)}, []BlobRange{a(0, 30+gap)}},
		"not near":            {[]BlobRange{a(0, 10), a(11+gap, 20)}, []BlobRange{a(0, 10), a(11+gap, 20)}},
		"within":              {[]BlobRange{a(0, 30), a(10, 5)}, []BlobRange{a(0, 30)}},
		"before":              {[]BlobRange{a(10, 10), a(0, 10)}, []BlobRange{a(10, 10), a(0, 10)}},
		"as much as there is": {[]BlobRange{a(0, most-1), a(most-1, 1), a(most, 1)}, []BlobRange{a(0, most), a(most, 1)}},
		"of another size":     {[]BlobRange{a(0, 10), {blobA, 2 << 20, 10, 10}}, []BlobRange{a(0, 10), {blobA, 2 << 20, 10, 10}}},
	} {
		if got := Join(c.in, most); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestEarlyForeign(t *testing.T) {
	a, b := `{"digest":"`+blobA.String()+`","size":100}`, `{"digest":"`+blobB.String()+`","size":1099511627776}`
	for name, text := range map[string]string{
		"no JSON":            "{",
		"too long":           strings.Repeat(" ", maxEarlyText) + "{}",
		"no digest":          `{"blobs":[{"digest":"sha256:1","size":1}],"ranges":[]}`,
		"a blob twice":       `{"blobs":[` + a + `,` + a + `],"ranges":[[1,0,1]]}`,
		"no digest of copy":  `{"blobs":[` + a + `],"ranges":[[0,0,1]],"copy":"sha256:1"}`,
		"other blob":         `{"blobs":[` + a + `],"ranges":[[1,0,1]]}`,
		"negative blob":      `{"blobs":[` + a + `],"ranges":[[-1,0,1]]}`,
		"negative offset":    `{"blobs":[` + a + `],"ranges":[[0,-1,1]]}`,
		"no bytes":           `{"blobs":[` + a + `],"ranges":[[0,0,0]]}`,
		"behind the end":     `{"blobs":[` + a + `],"ranges":[[0,99,2]]}`,
		"far behind it":      `{"blobs":[` + a + `],"ranges":[[0,9223372036854775807,1]]}`,
		"too many bytes":     `{"blobs":[` + b + `],"ranges":[[0,0,8388608],[0,0,1]]}`,
		"too many of a copy": `{"blobs":[` + b + `],"ranges":[[0,0,67108864],[0,0,1]],"copy":"` + blobA.String() + `"}`,
		"many bytes in one":  `{"blobs":[` + b + `],"ranges":[[0,0,8388609]]}`,
		"too many ranges":    `{"blobs":[` + a + `],"ranges":[` + strings.Repeat("[0,0,1],", maxEarlyRanges) + `[0,0,1]]}`,
	} {
		got, err := EarlyRanges(ocispec.Descriptor{Annotations: map[string]string{annotationEarly: text}})
		if err == nil || !reflect.DeepEqual(got, Early{}) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzEarlyRanges(f *testing.F) {
	for _, copied := range []string{"", "of 17 bytes......"} {
		f.Add(referrer(f, []BlobRange{{blobA, 1000, 0, 10}, {blobB, 20, 3, 7}}, []byte(copied)).Annotations[annotationEarly])
	}
	f.Add(`{"blobs":[],"ranges":[[0,0,1]]}`)
	f.Fuzz(func(t *testing.T, text string) {
		early, err := EarlyRanges(ocispec.Descriptor{Annotations: map[string]string{annotationEarly: text}})
		if err != nil {
			return
		}
		var bytes int64
		for _, r := range early.Ranges {
			if r.Blob.Validate() != nil || r.Off < 0 || r.Size <= 0 || r.Off > r.BlobSize-r.Size {
				t.Errorf("accepted %+v", r)
			}
			bytes += r.Size
		}
		if bytes > MaxEarly {
			t.Errorf("%d bytes", bytes)
		}
		if c := early.Copy; c.Digest != "" && (c.Digest.Validate() != nil || c.Size != bytes) {
			t.Errorf("%d bytes, and a copy of them: %+v", bytes, c)
		}
		text, err = encodeEarly(early.Ranges, early.Copy.Digest)
		if err != nil || (text == "") != (len(early.Ranges) == 0) {
			t.Fatalf("%d ranges encoded as %q, %v", len(early.Ranges), text, err)
		}
		again, err := EarlyRanges(ocispec.Descriptor{Annotations: map[string]string{annotationEarly: text}})
		if err != nil || !reflect.DeepEqual(again, early) {
			t.Errorf("came back as %v, %v", again, err)
		}
	})
}
