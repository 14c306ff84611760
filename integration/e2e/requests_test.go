package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// containerd asks for the manifest by tag and by digest and for the config;
// everything else is micad's. For an image of 6 indexed layers that is at most
// 10 requests, whether the registry has the referrers API or not.
func TestRequestsBeforeStart(t *testing.T) {
	img := fixture.Debian(t)
	config, err := img.ConfigName()
	mustf(t, err, "config")
	manifest, err := img.Manifest()
	mustf(t, err, "manifest")
	if len(manifest.Layers) != 6 {
		t.Fatalf("the image has %d layers, want 6", len(manifest.Layers))
	}
	for name, c := range map[string]struct {
		referrers bool // the registry has the API
		options   node.Options
	}{
		"fallback tag":  {false, node.Options{DemandOnly: true}},
		"referrers API": {true, node.Options{DemandOnly: true}},
		// with what containerd reads of the image
		"as it comes": {false, node.Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			r, ref, size := debian(t, true)
			if c.referrers {
				r = fixture.Referrers(t)
				ref = fixture.Push(t, r, "debian", img)
				fixture.Index(t, r, "debian")
			}
			n := fixture.Node(t, c.options)
			r.ResetTraffic()
			fixture.Pull(t, n, mica, ref)
			requests, byTag, configs := 0, 0, 0
			for _, q := range r.Traffic().Requests {
				switch {
				case q.Method == http.MethodHead && strings.HasSuffix(q.Path, "/manifests/test"):
					byTag++ // only containerd resolves tags: micad is told the digest
				case strings.HasSuffix(q.Path, "/blobs/"+config.String()):
					configs++ // only containerd reads configs
				default:
					requests++
				}
			}
			if byTag != 1 || configs != 1 {
				t.Errorf("%d requests for the tag and %d for the config, want one each, of containerd", byTag, configs)
			}
			// one of these is containerd's, for the manifest
			if requests-1 > 10 {
				t.Errorf("micad sent %d requests before the container could start, want at most 10", requests-1)
			}
			if c.options.DemandOnly {
				lazy(t, r.Traffic(), size)
			}
			out := fixture.Run(t, n, mica, ref, "program")
			if !strings.HasSuffix(out, images.Ready+"\n") {
				t.Errorf("the program prints %q", out)
			}
		})
	}
}
