package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/shaper"
)

// After a restart of micad with the same root everything is there again: the
// image runs without a pull, and what was downloaded is not downloaded again.
func TestRestartMicad(t *testing.T) {
	ctx := fixture.Context(t)
	for _, mode := range []string{"erofs", "fuse", "local"} {
		t.Run(mode, func(t *testing.T) {
			r, ref, _ := debian(t, true)
			n := fixture.Node(t, node.Options{Mode: mode, DemandOnly: true})
			fixture.Pull(t, n, mica, ref)
			want := fixture.Run(t, n, mica, ref, "before")
			fixture.Ctr(t, n, "containers", "create", "--net-host", "--snapshotter", mica, ref, "created")
			mounts := fixture.Ctr(t, n, "snapshots", "--snapshotter", mica, "mounts", "/target", "created")

			mustf(t, n.RestartMicad(ctx), "restart micad")
			r.ResetTraffic()
			if got := fixture.Ctr(t, n, "snapshots", "--snapshotter", mica, "mounts", "/target", "created"); got != mounts {
				t.Errorf("a snapshot's mounts are\n%s\nbefore the restart they were\n%s", got, mounts)
			}
			if out := fixture.Run(t, n, mica, ref, "after"); out != want {
				t.Errorf("after the restart the image prints\n%s\nwant\n%s", out, want)
			}
			if bytes := r.Traffic().BlobBytes(); bytes > 1<<20 {
				t.Errorf("%d bytes of blobs downloaded for a start that was made before", bytes)
			}
			// a new image as well, and both daemons one after the other
			mustf(t, n.RestartContainerd(ctx), "restart containerd")
			mustf(t, n.RestartMicad(ctx), "restart micad again")
			if out := fixture.Ctr(t, n, "tasks", "start", "created"); out != want {
				t.Errorf("a container that was created before the restarts prints\n%s\nwant\n%s", out, want)
			}
		})
	}
}

// micad is killed when a pull from a registry far away has just ended: the layers, which it has
// promised, come all the same.
func TestKilledAfterPull(t *testing.T) {
	ctx := fixture.Context(t)
	r, ref, _ := debian(t, true)
	want := plainly(t)
	n := fixture.Node(t, node.Options{DemandOnly: true, Keep: true})
	old := n.MicadPID()
	r.SetProfile(shaper.Profile{RTT: 400 * time.Millisecond})
	mustf(t, n.Pull(ctx, mica, ref), "pull")
	_, err := n.SignalMicad(syscall.SIGKILL)
	mustf(t, err, "kill micad")
	if mounts := fixture.LayerMounts(t, n); len(mounts) > 0 {
		t.Errorf("%v are mounted when the pull ends: nothing was promised", mounts)
	}
	r.SetProfile(shaper.Profile{})
	mustf(t, n.AwaitMicad(ctx, old, true), "next micad")
	if out := fixture.Run(t, n, mica, ref, "after"); out != want {
		t.Errorf("the image prints\n%s\nwant\n%s", out, want)
	}
}

// Containers run on while containerd is away.
func TestRestartContainerd(t *testing.T) {
	_, ref, _ := debian(t, true)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Pull(t, n, mica, ref)
	fixture.Ctr(t, n, "run", "-d", "--net-host", "--snapshotter", mica, ref, "c1", "sleep", "infinity")
	mustf(t, n.RestartContainerd(fixture.Context(t)), "restart containerd")
	want := fixture.Run(t, n, mica, ref, "c2")
	if out := fixture.Ctr(t, n, "tasks", "exec", "--exec-id", "x", "c1", "/app/run"); out != want {
		t.Errorf("a container that was running before prints\n%s\nwant\n%s", out, want)
	}
}
