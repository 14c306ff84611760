package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// A hundred containers from one image: none but the first makes micad mount or
// download anything.
func TestManyContainers(t *testing.T) {
	const count = 100
	r, ref, _ := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Pull(t, n, mica, ref)
	start := func(ctx context.Context, i int) error {
		id := fmt.Sprintf("c%d", i)
		// sleep is read before the file is there
		_, err := n.StartContainer(ctx, mica, ref, id, nil, nil,
			"sh", "-c", "sleep 0 && echo "+id+" >/srv/mine && exec sleep infinity")
		return err
	}
	mustf(t, start(fixture.Context(t), 0), "first container")
	wrote(t, n, "c0")
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
		wrote(t, n, fmt.Sprintf("c%d", i))
	}
}

// wrote waits until a container has written its name into its own layer.
func wrote(t *testing.T, n *node.Node, id string) {
	t.Helper()
	tries := 0
	fixture.Eventually(t, 10*time.Second, func() string {
		tries++
		out, err := n.Ctr(fixture.Context(t), "tasks", "exec", "--exec-id", fmt.Sprint("look", tries), id, "cat", "/srv/mine")
		if err != nil || out != id+"\n" {
			return fmt.Sprintf("container %s reads %q in its own layer: %v", id, out, err)
		}
		return ""
	})
}
