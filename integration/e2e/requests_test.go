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
	for _, api := range []bool{false, true} {
		t.Run(map[bool]string{false: "fallback tag", true: "referrers API"}[api], func(t *testing.T) {
			r := fixture.Registry(t)
			if api {
				r = fixture.Referrers(t)
			}
			ref := fixture.Push(t, r, "debian", img)
			fixture.Index(t, r, "debian")
			n := fixture.Node(t, node.Options{DemandOnly: true})
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
			size, err := images.Size(img)
			mustf(t, err, "size")
			lazy(t, r.Traffic(), size)
			out := fixture.Run(t, n, mica, ref, "program")
			if !strings.HasSuffix(out, images.Ready+"\n") {
				t.Errorf("the program prints %q", out)
			}
		})
	}
}
