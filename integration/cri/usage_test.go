package cri

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mica-snapshotter/mica/integration/fixture"
)

// TestImageFs: what the kubelet's eviction and its collector of images go by is true. They take how
// full the file system is from the file system that ImageFsInfo names, which is that of micad's
// root; what is "used" there is told by unpacked sizes, and is more than lazy layers take.
func TestImageFs(t *testing.T) {
	ctx := fixture.Context(t)
	r, ref, compressed := fixture.ServedDebian(t, true)
	n, c := start(t, r)
	if _, err := c.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	var used uint64
	fixture.Eventually(t, 30*time.Second, func() string { // containerd collects from time to time
		info, err := c.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		if err != nil {
			return err.Error()
		}
		first := info.ImageFilesystems[0] // the kubelet looks at no other
		if got := first.GetFsId().GetMountpoint(); got != n.MicadRoot() {
			t.Fatalf("file system of the images: %s, want micad's root", got)
		}
		if used = first.GetUsedBytes().GetValue(); used < uint64(compressed) {
			return "the image is not counted"
		}
		return ""
	})
	if disk := fixture.DiskUsage(t, n); used < 2*uint64(disk) {
		t.Errorf("%d bytes are used by unpacked sizes, micad's root takes %d: the image is not lazy", used, disk)
	}
	var root, whole unix.Statfs_t
	if err := unix.Statfs(n.MicadRoot(), &root); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs(n.Dir, &whole); err != nil {
		t.Fatal(err)
	}
	if root.Fsid != whole.Fsid || root.Blocks != whole.Blocks {
		t.Errorf("micad's root is on a file system of %d blocks, its disk has %d", root.Blocks, whole.Blocks)
	}
}
