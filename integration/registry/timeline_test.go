package registry_test

import (
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// What the proxy and the shaper each know of a request is put together.
func TestTimeline(t *testing.T) {
	const rtt = 30 * time.Millisecond
	tar, err := images.Tar(images.File("file", 0o644, make([]byte, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.FromTars([]string{"/none"}, tar)
	if err != nil {
		t.Fatal(err)
	}
	reg := fixture.Referrers(t)
	ref := fixture.Push(t, reg, "timeline", img)
	reg.SetProfile(shaper.Profile{RTT: rtt})
	reg.ResetTraffic()
	manifest := "http://" + strings.Replace(ref, "/timeline:", "/v2/timeline/manifests/", 1)
	for range 2 {
		if a := get(t, manifest, ""); a.err != nil || a.status != 200 {
			t.Fatalf("manifest: %d, %v", a.status, a.err)
		}
	}
	get(t, manifest+"-not", "")
	list := reg.Timeline()
	if len(list) != 3 || reg.Sent() != 3 {
		t.Fatalf("%d of %d requests, want 3: %+v", len(list), reg.Sent(), list)
	}
	for i, r := range list {
		want := 200
		if i == 2 {
			want = 404
		}
		if r.Status != want || r.First.Sub(r.Sent) < rtt || r.Last.Before(r.First) {
			t.Errorf("request %d: %+v", i, r)
		}
	}
}
