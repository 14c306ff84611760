// Package memory tests what micad keeps in memory.
package memory

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
)

const (
	layerCount    = 20
	filesPerLayer = 10_000
	limit         = 64 << 20 // bytes resident
)

// micad keeps no list of the files that it serves: 20 layers of 10,000 files, mounted and walked by
// a container, take less than 64 MiB.
func TestManyFiles(t *testing.T) {
	var tars [][]byte
	for l := range layerCount {
		entries := []images.Entry{images.Dir(fmt.Sprintf("l%02d", l))}
		for f := range filesPerLayer {
			if f%100 == 0 {
				entries = append(entries, images.Dir(fmt.Sprintf("l%02d/d%03d", l, f/100)))
			}
			entries = append(entries, images.File(fmt.Sprintf("l%02d/d%03d/file-%05d", l, f/100, f), 0o644, []byte(strconv.Itoa(l*f))))
		}
		tar, err := images.Tar(entries...)
		if err != nil {
			t.Fatal(err)
		}
		tars = append(tars, tar)
	}
	img, err := images.FromTars([]string{"/none"}, tars...)
	if err != nil {
		t.Fatal(err)
	}
	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "many", img)
	fixture.Index(t, r, "many")
	for _, mode := range []string{"erofs", "fuse"} {
		t.Run(mode, func(t *testing.T) {
			n := fixture.Node(t, node.Options{Mode: mode, DemandOnly: true})
			fixture.Pull(t, n, "mica", ref)
			mounted := resident(t, n.MicadPID())
			view := fixture.Mount(t, n, "mica", ref)
			listed := fixture.Output(t, "find", view.Dir, "-type", "f", "-size", "+0", "-printf", ".")
			if len(listed) < layerCount*filesPerLayer-layerCount {
				t.Errorf("find lists %d files, want about %d", len(listed), layerCount*filesPerLayer)
			}
			walked := resident(t, n.MicadPID())
			t.Logf("resident: %.1f MiB mounted, %.1f MiB when all files were listed", mib(mounted), mib(walked))
			if mounted > limit || walked > limit {
				t.Errorf("resident: %.1f MiB mounted, %.1f MiB when all files were listed; want less than %.0f", mib(mounted), mib(walked), mib(limit))
			}
		})
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// resident returns a process's resident memory in bytes.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no VmRSS in the status of process %d", pid)
	return 0
}
