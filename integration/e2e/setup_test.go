// Package e2e runs containers through a real containerd with Mica, and
// compares with containerd's own overlayfs snapshotter.
package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

const mica = node.Snapshotter

func TestMain(m *testing.M) { fixture.Main(m) }

// debian serves the Debian image, indexed or not.
func debian(t *testing.T, indexed bool) (r *registry.Registry, ref string, size int64) {
	t.Helper()
	return fixture.ServedDebian(t, indexed)
}

// plainly returns what a command (none: the image's) prints in the Debian image by overlayfs.
func plainly(t *testing.T, argv ...string) string {
	t.Helper()
	n, ref := fixture.PlainDebian(t)
	return fixture.Run(t, n, "overlayfs", ref, "plainly", argv...)
}

func mustf(t *testing.T, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// mustLayers returns the digests of an image's layers.
func mustLayers(t *testing.T, img v1.Image) []string {
	t.Helper()
	m, err := img.Manifest()
	mustf(t, err, "manifest")
	var digests []string
	for _, l := range m.Layers {
		digests = append(digests, l.Digest.String())
	}
	return digests
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	mustf(t, os.WriteFile(path, content, 0o600), "write")
}

// dockerConfig makes a directory with docker's config.json that holds one log-in.
func dockerConfig(t *testing.T, host, user, password string) string {
	t.Helper()
	dir := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	writeFile(t, filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, host, auth))
	return dir
}
