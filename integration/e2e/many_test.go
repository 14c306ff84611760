package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// 200 containers from one image: none but the first makes micad mount or
// download anything.
func TestManyContainers(t *testing.T) {
	const count = 200
	r, ref, _ := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Pull(t, n, mica, ref)
	start := func(ctx context.Context, i int) error {
		id := fmt.Sprintf("c%d", i)
		_, err := n.Ctr(ctx, "run", "-d", "--net-host", "--snapshotter", mica, ref, id,
			"sh", "-c", "echo "+id+" >/srv/mine && exec sleep infinity")
		return err
	}
	mustf(t, start(fixture.Context(t), 0), "first container")
	fixture.Ctr(t, n, "tasks", "exec", "--exec-id", "warm", "c0", "cat", "/srv/mine")
	mounts := fixture.LayerMounts(t, n)
	if len(mounts) == 0 {
		t.Fatal("micad has mounted no layers")
	}
	r.ResetTraffic()

	g, ctx := errgroup.WithContext(fixture.Context(t))
	g.SetLimit(4)
	for i := 1; i < count; i++ {
		g.Go(func() error { return start(ctx, i) })
	}
	mustf(t, g.Wait(), "start")

	if tasks := strings.Count(fixture.Ctr(t, n, "tasks", "list"), "RUNNING"); tasks != count {
		t.Errorf("%d containers run, want %d", tasks, count)
	}
	if got := fixture.LayerMounts(t, n); !slices.Equal(got, mounts) {
		t.Errorf("micad's mounts are\n%s\nafter the first container they were\n%s", strings.Join(got, "\n"), strings.Join(mounts, "\n"))
	}
	if requests := r.Traffic().Requests; len(requests) > 0 {
		t.Errorf("%d requests for %d more containers, the first %+v", len(requests), count-1, requests[0])
	}
	for _, i := range []int{1, count / 2, count - 1} {
		id := fmt.Sprintf("c%d", i)
		if out := fixture.Ctr(t, n, "tasks", "exec", "--exec-id", "look", id, "cat", "/srv/mine"); out != id+"\n" {
			t.Errorf("container %s reads %q in its own layer", id, out)
		}
	}
}
