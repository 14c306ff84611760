package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

// Readers of three times as much as the quota run through, and the cache never takes more than the
// quota and a span for each of them. What du, verify and gc say is so.
func TestQuota(t *testing.T) {
	const (
		quota   = 64 << 20
		readers = 8
		span    = 1<<20 + 128<<10 // the largest: a span ends with a block of deflate
	)
	tree := known.Tree{Seed: 77, Files: 200, Size: 1 << 20}
	if tree.Bytes() < 3*quota-(8<<20) {
		t.Fatalf("the tree has %d bytes", tree.Bytes())
	}
	r := fixture.Registry(t)
	probe, err := os.ReadFile(fixture.Probe(t))
	mustf(t, err, "read probe")
	img, err := images.Known(tree, "data", 3, images.File("probe", 0o755, probe))
	mustf(t, err, "make image")
	ref := fixture.Push(t, r, "large", img)
	fixture.Index(t, r, "large")
	n := fixture.Node(t, node.Options{Mode: "erofs", Micad: "[cache]\nsize = \"64MiB\""})
	fixture.Pull(t, n, mica, ref)
	ctx := fixture.Context(t)
	admin := admin.NewClient(n.MicadAddress())

	var most int64
	stop := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				most = max(most, storeUsage(t, n))
			}
		}
	})
	w, err := faults.Run(ctx, n, ref, "c1", faults.Reads{Tree: tree, Readers: readers, Step: time.Millisecond})
	mustf(t, err, "start readers")
	mustf(t, w.Read(), "read")
	time.Sleep(3 * time.Second)
	report, err := w.Finish(ctx)
	mustf(t, err, "read everything")
	close(stop)
	sampling.Wait()
	t.Logf("%+v; at most %d bytes on disk", report, most)
	if report.Failed > 0 || report.Wrong > 0 {
		t.Errorf("%d reads failed, %d were wrong: %v", report.Failed, report.Wrong, report.Trouble)
	}
	if limit := int64(quota + readers*span); most > limit {
		t.Errorf("%d bytes were on disk, %d allowed", most, limit)
	}
	if most < quota/2 {
		t.Errorf("only %d bytes were on disk: the cache is no use", most)
	}

	var c cache.Status
	mustf(t, admin.Get(ctx, "/v1/cache", &c), "cache")
	if c.Quota != quota || c.Evicted < tree.Bytes()-2*quota || c.Corrupt != 0 {
		t.Errorf("cache: %+v", c)
	}
	out, err := n.Mica(ctx, "du", "--address", n.MicadAddress(), "--json")
	mustf(t, err, "mica du")
	var du struct {
		Cache  cache.Status
		Layers []cache.Usage
	}
	mustf(t, json.Unmarshal([]byte(out), &du), "read du")
	if len(du.Layers) != 3 || !du.Layers[0].InUse || du.Layers[0].Present > du.Layers[0].Unpacked {
		t.Errorf("du: %s", out)
	}
	out, err = n.Mica(ctx, "verify", "--address", n.MicadAddress(), ref)
	if mustf(t, err, "mica verify"); strings.Count(out, "as it should be") != 3 {
		t.Errorf("verify: %s", out)
	}

	// What a container uses stays; what none uses goes, and comes again.
	before := storeUsage(t, n)
	_, err = n.Mica(ctx, "gc", "--unused", "--address", n.MicadAddress())
	mustf(t, err, "mica gc")
	if after := storeUsage(t, n); after < before/2 {
		t.Errorf("%d bytes of a container's layers went: %d left", before-after, after)
	}
	mustf(t, w.Remove(ctx), "remove container")
	fixture.Eventually(t, 30*time.Second, func() string { // containerd removes the snapshot in its own time
		out, err = n.Mica(ctx, "gc", "--unused", "--address", n.MicadAddress())
		mustf(t, err, "mica gc")
		if after := storeUsage(t, n); after > 4<<20 || !strings.Contains(out, "content") {
			return fmt.Sprintf("%d bytes are left after gc, which says\n%s", after, out)
		}
		return ""
	})
	small := fixture.Run(t, n, mica, ref, "c2", "/probe", "echo", "still", "here")
	if strings.TrimSpace(small) != "still here" {
		t.Errorf("a container says %q", small)
	}
	text, err := n.Mica(ctx, "ps", "--address", n.MicadAddress())
	mustf(t, err, "mica ps")
	if !bytes.Contains([]byte(text), []byte("on disk of 67.1 MB")) {
		t.Errorf("ps: %s", text)
	}
}

// TestFullDisk: on a disk without a free block `mica gc --unused` has layers go that the kernel
// serves by itself, for which a folder has to be made.
func TestFullDisk(t *testing.T) {
	r := fixture.Referrers(t)
	img, err := images.Known(known.Tree{Seed: 78, Files: 16, Size: 1 << 20}, "data", 3)
	mustf(t, err, "make image")
	ref := fixture.Push(t, r, "whole", img) // without an index
	n := fixture.Node(t, node.Options{Disk: 128 << 20})
	fixture.Pull(t, n, mica, ref)
	before := storeUsage(t, n)
	_, err = n.Disk().Fill()
	mustf(t, err, "fill the disk")
	if err := os.Mkdir(n.MicadRoot()+"/more", 0o700); err == nil {
		t.Fatal("the disk is not full")
	}
	out, err := n.Mica(fixture.Context(t), "gc", "--unused", "--address", n.MicadAddress())
	if after := storeUsage(t, n); err != nil || before < 16<<20 || after > 1<<20 {
		t.Errorf("%d of %d bytes are left after gc, which says %v\n%s", after, before, err, out)
	}
}

// TestFullDiskPull: on a disk without a free block a pull has content go that no container uses.
func TestFullDiskPull(t *testing.T) {
	r := fixture.Referrers(t)
	img, err := images.Known(known.Tree{Seed: 78, Files: 16, Size: 1 << 20}, "data", 3)
	mustf(t, err, "make image")
	old := fixture.Push(t, r, "old", img) // without an index
	probe, err := os.ReadFile(fixture.Probe(t))
	mustf(t, err, "read probe")
	for _, name := range []string{"indexed", "plain"} {
		img, err := images.Known(known.Tree{Seed: 79, Files: 8, Size: 1 << 20}, name, 2,
			images.File("probe", 0o755, probe))
		mustf(t, err, "make image")
		fresh := fixture.Push(t, r, name, img)
		if name == "indexed" {
			fixture.Index(t, r, name)
		}
		n := fixture.Node(t, node.Options{Disk: 128 << 20, DemandOnly: true})
		fixture.Pull(t, n, mica, old)
		_, err = n.Disk().Fill()
		mustf(t, err, "fill the disk")
		fixture.Pull(t, n, mica, fresh)
		if out := fixture.Run(t, n, mica, fresh, "c", "/probe", "echo", "here"); out != "here\n" {
			t.Errorf("a container says %q", out)
		}
		text, err := n.Mica(fixture.Context(t), "ps", "--address", n.MicadAddress())
		mustf(t, err, "mica ps")
		if strings.Contains(text, "containerd pulled") {
			t.Errorf("not all layers of image %s are Mica's:\n%s", name, text)
		}
	}
}

// storeUsage is what the layers' files take on disk.
func storeUsage(t *testing.T, n *node.Node) int64 {
	t.Helper()
	return fixture.DiskUsageOf(t, n.MicadRoot()+"/layers")
}
