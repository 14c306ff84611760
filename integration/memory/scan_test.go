package memory

import (
	"archive/tar"
	"bytes"
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
	scannedLayers   = 6
	filesPerScanned = 60_000
	// scanLimit is what micad may have resident at the most, bytes: what it has at its beginning
	// and as garbage (96 MiB), the scans' memory (8 MiB), and one layer's tree (30 MiB). All six
	// trees at once are 150 MiB.
	scanLimit = 140 << 20
)

// Layers without an index are scanned in bounded memory, however many come at once.
func TestManyFilesUnindexed(t *testing.T) {
	var tars [][]byte
	for l := range scannedLayers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for f := range filesPerScanned {
			h := tar.Header{Name: fmt.Sprintf("l%02d/d%03d/file-%05d", l, f/100, f), Mode: 0o644}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		tars = append(tars, b.Bytes())
	}
	img, err := images.FromTars([]string{"/none"}, tars...)
	if err != nil {
		t.Fatal(err)
	}
	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "unindexed", img)
	n := fixture.Node(t, node.Options{
		DemandOnly: true, Micad: "[limits]\nscan_memory = \"8MiB\"\n",
		MicadRemote: fmt.Sprintf("max_concurrent_downloads = %d", scannedLayers),
	})
	fixture.Pull(t, n, "mica", ref)
	peak := peakOf(t, n.MicadPID())
	t.Logf("resident at the most: %.1f MiB", mib(peak))
	if peak > scanLimit {
		t.Errorf("resident at the most: %.1f MiB, want less than %.0f", mib(peak), mib(scanLimit))
	}
	view := fixture.Mount(t, n, "mica", ref)
	listed := fixture.Output(t, "find", view.Dir, "-type", "f", "-printf", ".")
	if len(listed) != scannedLayers*filesPerScanned {
		t.Errorf("find lists %d files", len(listed))
	}
}

// peakOf returns the most memory that a process had resident, in bytes.
func peakOf(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
