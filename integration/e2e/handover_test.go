package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// readMuch digests five thousand files of all layers twice: cold, and against what the kernel keeps
// of them. What a read that fails prints to standard error counts, too.
const readMuch = `echo begun; cd / && for i in 1 2; do
find usr/lib usr/share/perl app -xdev -type f -exec sha256sum {} + 2>&1 |
	LC_ALL=C sort -k2 | sha256sum
done`

// Containers read on while micad is killed, stopped, told to make way for another one, again and
// again: every read is answered and right. New containers start in between.
func TestHandOver(t *testing.T) {
	_, ref, _ := debian(t, true)
	want := plainly(t, "sh", "-c", readMuch)
	for _, mode := range []string{"erofs", "fuse"} {
		t.Run(mode, func(t *testing.T) {
			ctx := fixture.Context(t)
			n := fixture.Node(t, node.Options{Mode: mode, DemandOnly: true, Keep: true})
			fixture.Pull(t, n, mica, ref)
			before := fixture.LayerMounts(t, n)
			var readers sync.WaitGroup
			var outs [3]begun
			var errs [3]error
			for i := range outs {
				outs[i].first = make(chan struct{})
				readers.Go(func() {
					id := fmt.Sprint("reader", i)
					errs[i] = n.RunTo(ctx, &outs[i], mica, ref, id, "sh", "-c", readMuch)
				})
			}
			// A call of containerd that is under way when micad ends fails: the containers are to
			// run first.
			for i := range outs {
				select {
				case <-outs[i].first:
				case <-time.After(time.Minute):
					t.Fatalf("reader %d does not start", i)
				}
			}
			done := make(chan struct{})
			go func() { readers.Wait(); close(done) }()
			ends := 0
			for running := true; running; ends++ {
				select {
				case <-done:
					running = false
				case <-time.After(time.Duration(50+rand.IntN(450)) * time.Millisecond):
				}
				handOver(t, n, ends)
			}
			t.Logf("micad ended %d times", ends)
			for i, err := range errs {
				if err != nil || outs[i].all.String() != want {
					t.Errorf("reader %d: %v\n%s\nwant\n%s", i, err, outs[i].all.String(), want)
				}
			}
			mustf(t, awaitRestored(ctx, n), "restore")
			if after := fixture.LayerMounts(t, n); strings.Join(after, " ") != strings.Join(before, " ") {
				t.Errorf("mounts\n%s\nbefore\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
			if fds, more := descriptors(t, n.KeeperPID()), 2*len(before)+30; fds > more {
				t.Errorf("micad's keeper has %d descriptors open for %d mounts", fds, len(before))
			}
			if got := fixture.Run(t, n, mica, ref, "after", "sh", "-c", readMuch); got != want {
				t.Errorf("afterwards\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// begun is what a container prints. first is closed when it has printed something.
type begun struct {
	all   bytes.Buffer // not embedded: its ReadFrom would go past Write
	once  sync.Once
	first chan struct{}
}

// Write implements io.Writer.
func (b *begun) Write(p []byte) (int, error) {
	b.once.Do(func() { close(b.first) })
	return b.all.Write(p)
}

// handOver ends micad in one way or another and waits for the next one.
func handOver(t *testing.T, n *node.Node, how int) {
	t.Helper()
	ctx := fixture.Context(t)
	old := n.MicadPID()
	if old == 0 {
		return // the keeper is about to start it
	}
	var err error
	switch how % 4 {
	case 0, 1:
		_, err = n.SignalMicad(syscall.SIGKILL)
	case 2:
		_, err = n.SignalMicad(syscall.SIGTERM)
	case 3:
		err = n.SignalKeeper(syscall.SIGHUP)
	}
	mustf(t, err, "signal")
	mustf(t, n.AwaitMicad(ctx, old, false), "next micad")
}

func awaitRestored(ctx context.Context, n *node.Node) error { return n.AwaitMicad(ctx, 0, true) }

// descriptors counts the open files of a process.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(pid), "fd"))
	mustf(t, err, "descriptors")
	return len(fds)
}
