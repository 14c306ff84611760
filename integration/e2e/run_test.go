package e2e

import (
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// everything lists a container's root and digests all its files, with the image's own tools. What
// containerd and runc put into every container is left out (the directories that they mount on have
// the time at which they did), and so are the sizes and link counts of directories, which are the
// file system's own.
const everything = `cd / && find . -xdev -mindepth 1 \( -path ./dev -o -path ./proc -o -path ./sys -o -path ./run -o -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf \) \
  -prune -o -type d -printf '%p %y %m %U %G %T@\n' -o -printf '%p %y %m %U %G %s %T@ %l %n\n' | LC_ALL=C sort
find . -xdev -type f -exec sha256sum {} + | LC_ALL=C sort -k2`

// The image's program prints through Mica what it prints through overlayfs,
// and so does a list and a full read of the root, in each mode. Before the
// container starts, next to nothing has been downloaded.
func TestModes(t *testing.T) {
	r, ref, size := debian(t, true)
	program := plainly(t)
	if !strings.HasPrefix(program, images.Started+"\n") || !strings.HasSuffix(program, images.Ready+"\n") {
		t.Fatalf("the program prints through overlayfs:\n%s", program)
	}
	all := plainly(t, "sh", "-c", everything)
	for name, opts := range map[string]node.Options{
		"erofs":   {Mode: "erofs", DemandOnly: true},
		"fuse":    {Mode: "fuse", DemandOnly: true},
		"local":   {Mode: "local", DemandOnly: true},
		"auto":    {DemandOnly: true},
		"filling": {}, // as installed
	} {
		t.Run(name, func(t *testing.T) {
			n := fixture.Node(t, opts)
			r.ResetTraffic()
			fixture.Pull(t, n, mica, ref)
			if opts.DemandOnly && opts.Mode != "local" {
				lazy(t, r.Traffic(), size)
			}
			if got := fixture.Run(t, n, mica, ref, "program"); got != program {
				t.Errorf("the program prints\n%s\nthrough overlayfs\n%s", got, program)
			}
			if got := fixture.Run(t, n, mica, ref, "all", "sh", "-c", everything); got != all {
				t.Errorf("the root differs from overlayfs's:\n%s", firstDifference(all, got))
			}
		})
	}
}

// lazy checks that a pull brought no more than a hundredth of the image, with
// at most 10 requests of micad for blobs, indexes and manifests.
func lazy(t *testing.T, traffic registry.Traffic, size int64) {
	t.Helper()
	if traffic.Down > size/100 {
		t.Errorf("%d bytes downloaded before the start, of %d in the image: more than 1%%", traffic.Down, size)
	}
	for _, q := range traffic.Requests {
		t.Logf("%s %s %s: %d, %d bytes", q.Method, q.Path, q.Range, q.Status, q.Bytes)
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return "- " + w[i] + "\n+ " + g[i]
		}
	}
	return "one is longer: " + strings.Join(append(w[min(len(w), len(g)):], g[min(len(w), len(g)):]...), "\n")
}
