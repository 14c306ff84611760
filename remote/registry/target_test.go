package registry

import (
	"fmt"
	"net/url"
	"testing"
	"time"
)

func TestExpiry(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for query, want := range map[string]time.Time{
		"": {},
		"X-Amz-Date=20260304T050607Z&X-Amz-Expires=60":    at.Add(time.Minute),
		"X-Goog-Date=20260304T050607Z&X-Goog-Expires=900": at.Add(15 * time.Minute),
		"X-Amz-Date=yesterday&X-Amz-Expires=60":           {},
		"X-Amz-Date=20260304T050607Z&X-Amz-Expires=-60":   {},
		"se=2026-03-04T05%3A06%3A07Z&sig=x":               at,
		fmt.Sprintf("Expires=%d", at.Unix()):              at,
		fmt.Sprintf("verify=%d-abc%%3D", at.Unix()):       at,
		"Expires=60":                   {},
		"Expires=99999999999999999999": {},
	} {
		if got := expiry(&url.URL{RawQuery: query}); !got.Equal(want) {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
}
