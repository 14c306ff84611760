package e2e

import (
	"archive/tar"
	"crypto/rand"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestDiff: containerd compares the bytes of files whose times are whole seconds, as a commit does.
// Times with nanoseconds are served with them, and then it reads nothing of a lazy layer.
func TestDiff(t *testing.T) {
	r := fixture.Referrers(t)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	large := make([]byte, 4<<20)
	rand.Read(large)
	for name, tc := range map[string]struct {
		nsec int64
		read bool
	}{"seconds": {0, true}, "nanoseconds": {123456789, false}} {
		e := images.File("large", 0o644, large)
		e.Header.Format = tar.FormatPAX
		e.Header.ModTime = time.Unix(1700000000, tc.nsec)
		layer, err := images.Tar(e)
		mustf(t, err, name)
		img, err := images.FromTars([]string{"/none"}, layer)
		mustf(t, err, name)
		ref := fixture.Push(t, r, name, img)
		fixture.Index(t, r, name)
		fixture.Pull(t, n, mica, ref)
		config, err := img.ConfigFile()
		mustf(t, err, name)
		fixture.Ctr(t, n, "snapshots", "--snapshotter", mica, "prepare", name,
			config.RootFS.DiffIDs[0].String())
		r.ResetTraffic()
		fixture.Ctr(t, n, "snapshots", "--snapshotter", mica, "diff", name)
		if got := r.Traffic().Down; (got > 1<<20) != tc.read {
			t.Errorf("%s: a diff downloads %d bytes of %d", name, got, len(large))
		}
	}
}
