package index_test

import (
	"testing"

	"github.com/mica-snapshotter/mica/index"
)

// TestWholeSpans: spans without a place in the blob are all of a layer's, or none.
func TestWholeSpans(t *testing.T) {
	whole := func(device, size int64) index.Span {
		return index.Span{Codec: index.FromStart, Device: device, Size: size}
	}
	stored := index.Span{Device: 10, Size: 5, Blob: 10, BlobSize: 5}
	placed := whole(10, 5)
	placed.BlobSize = 5
	window := whole(10, 5)
	window.Window.Size = 3
	for name, tt := range map[string]struct {
		spans index.Spans
		ok    bool
	}{
		"whole":           {index.Spans{whole(0, 10), whole(10, 5)}, true},
		"none":            {index.Spans{{Size: 10, BlobSize: 10}, stored}, true},
		"one is not":      {index.Spans{whole(0, 10), stored}, false},
		"one alone is":    {index.Spans{{Size: 10, BlobSize: 10}, whole(10, 5)}, false},
		"a place":         {index.Spans{whole(0, 10), placed}, false},
		"a window":        {index.Spans{whole(0, 10), window}, false},
		"a gap":           {index.Spans{whole(0, 9), whole(10, 5)}, false},
		"an empty one":    {index.Spans{whole(0, 10), whole(10, 0), whole(10, 5)}, false},
		"one is too long": {index.Spans{whole(0, index.MaxSpanSize+1)}, false},
		"unknown codec":   {index.Spans{{Codec: index.FromStart + 1, Size: 15}}, false},
		"zstd":            {index.Spans{{Codec: index.Zstd, Size: 15, BlobSize: 15}}, false},
	} {
		h := index.Header{LayerSize: 15, DeviceSize: 15}
		if n := len(tt.spans); n == 1 {
			h.DeviceSize = tt.spans[0].Size
		}
		if err := checkSpans(tt.spans, h); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
