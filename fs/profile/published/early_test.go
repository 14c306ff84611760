package published

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var blobA, blobB = digest.FromString("a"), digest.FromString("b")

func referrer(t testing.TB, ranges []BlobRange) ocispec.Descriptor {
	t.Helper()
	a, err := New(profileOf(3), made)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Early(ranges); err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{Digest: subject.Digest, Annotations: a.Manifest(subject).Annotations}
}

func TestEarlyRoundTrip(t *testing.T) {
	want := []BlobRange{{blobA, 1000, 0, 10}, {blobB, 1 << 40, 1<<40 - 7, 7}, {blobA, 1000, 500, 500}}
	got, err := EarlyRanges(referrer(t, want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for name, ranges := range map[string][]BlobRange{"none": nil, "too many": make([]BlobRange, maxEarlyRanges+1)} {
		if d := referrer(t, ranges); d.Annotations[annotationEarly] != "" {
			t.Errorf("%s: says %q", name, d.Annotations[annotationEarly])
		}
	}
	if got, err := EarlyRanges(ocispec.Descriptor{}); len(got) != 0 || err != nil {
		t.Errorf("without the annotation: %v, %v", got, err)
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
		"no JSON":           "{",
		"too long":          strings.Repeat(" ", maxEarlyText) + "{}",
		"no digest":         `{"blobs":[{"digest":"sha256:1","size":1}],"ranges":[]}`,
		"a blob twice":      `{"blobs":[` + a + `,` + a + `],"ranges":[[1,0,1]]}`,
		"other blob":        `{"blobs":[` + a + `],"ranges":[[1,0,1]]}`,
		"negative blob":     `{"blobs":[` + a + `],"ranges":[[-1,0,1]]}`,
		"negative offset":   `{"blobs":[` + a + `],"ranges":[[0,-1,1]]}`,
		"no bytes":          `{"blobs":[` + a + `],"ranges":[[0,0,0]]}`,
		"behind the end":    `{"blobs":[` + a + `],"ranges":[[0,99,2]]}`,
		"far behind it":     `{"blobs":[` + a + `],"ranges":[[0,9223372036854775807,1]]}`,
		"too many bytes":    `{"blobs":[` + b + `],"ranges":[[0,0,8388608],[0,0,1]]}`,
		"many bytes in one": `{"blobs":[` + b + `],"ranges":[[0,0,8388609]]}`,
		"too many ranges":   `{"blobs":[` + a + `],"ranges":[` + strings.Repeat("[0,0,1],", maxEarlyRanges) + `[0,0,1]]}`,
	} {
		got, err := EarlyRanges(ocispec.Descriptor{Annotations: map[string]string{annotationEarly: text}})
		if err == nil || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzEarlyRanges(f *testing.F) {
	f.Add(referrer(f, []BlobRange{{blobA, 1000, 0, 10}, {blobB, 20, 3, 7}}).Annotations[annotationEarly])
	f.Add(`{"blobs":[],"ranges":[[0,0,1]]}`)
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := EarlyRanges(ocispec.Descriptor{Annotations: map[string]string{annotationEarly: text}})
		if err != nil {
			return
		}
		var bytes int64
		for _, r := range ranges {
			if r.Blob.Validate() != nil || r.Off < 0 || r.Size <= 0 || r.Off > r.BlobSize-r.Size {
				t.Errorf("accepted %+v", r)
			}
			bytes += r.Size
		}
		if bytes > MaxEarly {
			t.Errorf("%d bytes", bytes)
		}
		text, err = encodeEarly(ranges)
		if err != nil || (text == "") != (len(ranges) == 0) {
			t.Fatalf("%d ranges encoded as %q, %v", len(ranges), text, err)
		}
		again, err := EarlyRanges(ocispec.Descriptor{Annotations: map[string]string{annotationEarly: text}})
		if err != nil || !slices.Equal(again, ranges) {
			t.Errorf("came back as %v, %v", again, err)
		}
	})
}
