package faults_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// misfortunes strike requests for blobs in turn; every third goes well.
var misfortunes = []registry.Fault{
	{Delay: 200 * time.Millisecond},
	{Reset: true, Cut: 100},
	{},
	{Truncate: true, Cut: 70_000},
	{Status: http.StatusTooManyRequests, RetryAfter: "1"},
	{},
	{Status: http.StatusInternalServerError},
	{Whole: true},
	{},
	{Page: true},
	{WrongRange: true},
	{},
	{Status: http.StatusServiceUnavailable},
	{Truncate: true, Cut: 0},
	{},
	{Reset: true, Cut: 300_000},
	{Delay: 50 * time.Millisecond, Status: http.StatusBadGateway},
	{},
}

// Many processes read random ranges of many files at once, through each mode,
// while the registry does all that: every byte is right and no read fails.
func TestConcurrentReads(t *testing.T) {
	const processes, reads = 8, 400
	r := fixture.Registry(t)
	ref := fixture.Push(t, r, "debian", fixture.Debian(t))
	fixture.Index(t, r, "debian")
	probe := fixture.Probe(t)
	digests := func(t *testing.T, dir string) []string {
		t.Helper()
		out := make([]string, processes)
		var g errgroup.Group
		for i := range out {
			g.Go(func() (err error) {
				out[i], err = node.Command(fixture.Context(t), probe, "read", dir, fmt.Sprint(i),
					fmt.Sprint(reads))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	plain := fixture.Node(t, node.Options{NoMicad: true})
	fixture.Pull(t, plain, "overlayfs", ref)
	want := digests(t, fixture.Mount(t, plain, "overlayfs", ref).Dir)

	for _, mode := range []string{"erofs", "fuse", "local"} {
		t.Run(mode, func(t *testing.T) {
			n := fixture.Node(t, node.Options{Mode: mode, DemandOnly: true})
			var struck atomic.Int64
			var blobs atomic.Int64
			r.SetRule(func(q *http.Request, _ int64) registry.Fault {
				// containerd reads manifests and config, and gives up at the first error
				if !strings.Contains(q.URL.Path, "/blobs/") ||
					strings.HasPrefix(q.UserAgent(), "containerd/") {
					return registry.Fault{}
				}
				f := misfortunes[(blobs.Add(1)-1)%int64(len(misfortunes))]
				if f != (registry.Fault{}) {
					struck.Add(1)
				}
				return f
			})
			defer r.SetRule(nil)
			fixture.Pull(t, n, node.Snapshotter, ref)
			got := digests(t, fixture.Mount(t, n, node.Snapshotter, ref).Dir)
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("process %d read bytes with digest %s, want %s", i, got[i], want[i])
				}
			}
			if struck.Load() < int64(images.Layers) { // whole layers take few requests
				t.Errorf("only %d of %d requests met a fault", struck.Load(), blobs.Load())
			}
			t.Logf("%d of %d requests met a fault", struck.Load(), blobs.Load())
		})
	}
}
