package layer

import (
	"slices"
	"testing"

	"github.com/mica-snapshotter/mica/index"
)

// table makes spans of 1000 device bytes at the given places in the blob.
func table(at ...index.Span) index.Spans {
	for i := range at {
		at[i].Device, at[i].Size = int64(i)*1000, 1000
	}
	return at
}

func at(blob, size int64) index.Span { return index.Span{Blob: blob, BlobSize: size} }

func windowed(blob, size, off, n int64) index.Span {
	return index.Span{Blob: blob, BlobSize: size, Codec: index.Deflate, Window: index.Range{Off: off, Size: n}}
}

func TestPlan(t *testing.T) {
	near := table(at(10, 100), at(109, 100), at(209, 100), at(309, 100))
	for name, c := range map[string]struct {
		spans   index.Spans
		missing []int
		request int64
		want    []extent
	}{
		"nothing":               {near, nil, 1000, nil},
		"neighbours":            {near, []int{0, 1, 2, 3}, 1000, []extent{{0, 4}}},
		"a hole":                {near, []int{0, 2, 3}, 1000, []extent{{0, 1}, {2, 2}}},
		"too many bytes":        {near, []int{0, 1, 2, 3}, 199, []extent{{0, 2}, {2, 1}, {3, 1}}},
		"one with too many":     {near, []int{1, 2}, 1, []extent{{1, 1}, {2, 1}}},
		"far apart in the blob": {table(at(0, 10), at(11+maxGap, 10), at(21+2*maxGap, 10)), []int{0, 1, 2}, 1 << 30, []extent{{0, 1}, {1, 2}}},
		"windows together":      {table(windowed(0, 10, 0, 5), at(10, 10), windowed(20, 10, 5, 5)), []int{0, 1, 2}, 1000, []extent{{0, 3}}},
		"windows backwards":     {table(windowed(0, 10, 5, 5), windowed(10, 10, 0, 5)), []int{0, 1}, 1000, []extent{{0, 2}}},
		"windows far apart":     {table(windowed(0, 10, 1<<40, 5), windowed(10, 10, 0, 5)), []int{0, 1}, 1 << 50, []extent{{0, 1}, {1, 1}}},
		"windows count":         {table(windowed(0, 10, 0, 60), windowed(10, 10, 60, 60)), []int{0, 1}, 100, []extent{{0, 1}, {1, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := plan(c.spans, c.missing, c.request); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestWindowRange(t *testing.T) {
	s := table(at(0, 10), windowed(10, 10, 100, 5), at(20, 10), windowed(30, 10, 105, 7))
	for _, c := range []struct {
		e    extent
		want byteRange
	}{
		{extent{0, 1}, byteRange{}}, {extent{0, 2}, byteRange{100, 105}}, {extent{0, 4}, byteRange{100, 112}}, {extent{2, 2}, byteRange{105, 112}},
	} {
		if got := c.e.windowRange(s); got != c.want {
			t.Errorf("windows of %v are %v, want %v", c.e, got, c.want)
		}
	}
}
