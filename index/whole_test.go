package index

import "testing"

// TestWholeSpans: spans without a place in the blob are all of a layer's, or none.
func TestWholeSpans(t *testing.T) {
	whole := func(device, size int64) Span { return Span{Codec: FromStart, Device: device, Size: size} }
	stored := Span{Device: 10, Size: 5, Blob: 10, BlobSize: 5}
	placed := whole(10, 5)
	placed.BlobSize = 5
	window := whole(10, 5)
	window.Window.Size = 3
	for name, tt := range map[string]struct {
		spans Spans
		ok    bool
	}{
		"whole":           {Spans{whole(0, 10), whole(10, 5)}, true},
		"none":            {Spans{{Size: 10, BlobSize: 10}, stored}, true},
		"one is not":      {Spans{whole(0, 10), stored}, false},
		"one alone is":    {Spans{{Size: 10, BlobSize: 10}, whole(10, 5)}, false},
		"a place":         {Spans{whole(0, 10), placed}, false},
		"a window":        {Spans{whole(0, 10), window}, false},
		"a gap":           {Spans{whole(0, 9), whole(10, 5)}, false},
		"an empty one":    {Spans{whole(0, 10), whole(10, 0), whole(10, 5)}, false},
		"one is too long": {Spans{whole(0, MaxSpanSize+1)}, false},
		"unknown codec":   {Spans{{Codec: FromStart + 1, Size: 15}}, false},
		"zstd":            {Spans{{Codec: Zstd, Size: 15, BlobSize: 15}}, false},
	} {
		h := Header{LayerSize: 15, DeviceSize: 15}
		if n := len(tt.spans); n == 1 {
			h.DeviceSize = tt.spans[0].Size
		}
		if err := tt.spans.check(&h); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
