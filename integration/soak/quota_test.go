package soak_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

// With a quota of a third of what is read, everything is read, twice, within the quota and a span
// for each reader.
func TestQuota(t *testing.T) {
	const (
		quota   = 64 << 20
		readers = 4
		span    = 1 << 20
	)
	r := fixture.Registry(t)
	tree := known.Tree{Seed: 50, Files: 200, Size: 1 << 20}
	if tree.Bytes() < 3*quota {
		t.Fatalf("%d bytes are less than three quotas", tree.Bytes())
	}
	ref := push(t, r, "large", tree, probe(t))
	n := fixture.Node(t, node.Options{Keep: true, Micad: fmt.Sprintf("[cache]\nsize = \"%d\"", quota)})
	fixture.Pull(t, n, node.Snapshotter, ref)
	ctx := fixture.Context(t)
	stop, most := make(chan struct{}), make(chan int64)
	go func() { most <- largest(filepath.Join(n.MicadRoot(), "layers"), stop) }()
	for i := range 2 {
		w, err := faults.Run(ctx, n, ref, fmt.Sprint("c", i), faults.Reads{Tree: tree, Readers: readers})
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.Finish(ctx)
		t.Logf("%d reads, the longest took %v", got.Reads, got.Longest.Round(time.Millisecond))
		if problem := (faults.Cell{Report: got, Trouble: err}).Problem(time.Minute); problem != "" {
			t.Error(problem)
		}
	}
	close(stop)
	used := <-most
	t.Logf("%.1f MiB read through a cache of %.1f MiB at most, quota %d MiB", float64(tree.Bytes())/(1<<20), float64(used)/(1<<20), quota>>20)
	if used > quota+readers*span {
		t.Errorf("layers took %d bytes, more than the quota of %d and a span of %d for each of %d readers", used, int64(quota), int64(span), readers)
	}
	if used < quota/2 {
		t.Errorf("layers took %d bytes: the quota of %d was not used", used, int64(quota))
	}
}

// largest returns the most space that the files below dir took until stop.
func largest(dir string, stop <-chan struct{}) int64 {
	var most int64
	for {
		var sum int64
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if info, statErr := os.Lstat(path); err == nil && statErr == nil { // else it is gone meanwhile
				sum += info.Sys().(*syscall.Stat_t).Blocks * 512 // unit of st_blocks
			}
			return nil
		})
		most = max(most, sum)
		select {
		case <-stop:
			return most
		case <-time.After(20 * time.Millisecond):
		}
	}
}
