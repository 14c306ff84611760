package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// readRest reads what a start does not.
const readRest = `cat /usr/lib/python3*/*.py | sha256sum`

// While a container waits for a registry that is gone it can be killed at once. It cannot be
// paused, which does it no harm: it gets its bytes when the registry is back, and can be paused
// then.
func TestWaiting(t *testing.T) {
	r, ref, _ := debian(t, true)
	for name, mode := range map[string]string{"auto": "", "fuse": "fuse"} {
		t.Run(name, func(t *testing.T) {
			ctx := fixture.Context(t)
			n := fixture.Node(t, node.Options{DemandOnly: true, Mode: mode})
			fixture.Pull(t, n, mica, ref)

			down := startWaiting(t, n, r, ref, "paused")
			fixture.Eventually(t, 5*time.Second, func() string { // long before the read ends
				out, err := n.Mica(ctx, "ps", "--json", "--address", n.MicadAddress())
				if mustf(t, err, "ps"); !strings.Contains(out, `"last_error":`) {
					return "mica ps does not say why it waits: " + out
				}
				return ""
			})
			start := time.Now()
			_, err := n.Ctr(ctx, "tasks", "pause", "paused")
			t.Logf("pause while it waits, after %s: %v", time.Since(start), err)
			mustf(t, r.Up(), "registry")
			if err == nil {
				fixture.Ctr(t, n, "tasks", "resume", "paused")
			}
			fixture.Eventually(t, 30*time.Second, func() string {
				if !strings.Contains(down.out.String(), "-\n") {
					return fmt.Sprintf("the reader has printed %q", down.out.String())
				}
				return ""
			})
			fixture.Ctr(t, n, "tasks", "pause", "paused")
			fixture.Ctr(t, n, "tasks", "resume", "paused")
			mustf(t, down.Remove(ctx), "remove")
			again := fixture.Run(t, n, mica, ref, "again", "sh", "-c", readRest)
			if got := down.out.String(); got != "ready\n"+again {
				t.Errorf("the reader has printed %q, another one prints %q", got, again)
			}
		})
		t.Run(name+" killed", func(t *testing.T) {
			n := fixture.Node(t, node.Options{DemandOnly: true, Mode: mode})
			fixture.Pull(t, n, mica, ref)
			down := startWaiting(t, n, r, ref, "killed")
			defer func() { mustf(t, r.Up(), "registry") }()
			start := time.Now()
			mustf(t, down.Signal(syscall.SIGKILL), "kill")
			for down.Alive() && time.Since(start) < 10*time.Second {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("a killed container ends after %s", took)
			}
			mustf(t, down.Remove(fixture.Context(t)), "remove")
		})
	}
}

// waiting is a container that waits for a registry.
type waiting struct {
	*node.Container
	out *printed
}

// printed is what a container has printed so far.
type printed struct {
	mu  sync.Mutex
	all []byte
}

// Write implements io.Writer.
func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, b...)
	return len(b), nil
}

func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.all)
}

// startWaiting starts a container, takes the registry away, has the container read, and returns
// when that waits.
func startWaiting(t *testing.T, n *node.Node, r *registry.Registry, ref, id string) waiting {
	t.Helper()
	w := waiting{out: &printed{}}
	script := "cat /dev/null | sha256sum >/dev/null; echo ready\n" +
		"while ! [ -e /tmp/go ]; do sleep 0.1; done\n" + readRest + "\nsleep 1000"
	c, err := n.StartContainer(fixture.Context(t), mica, ref, id, w.out, w.out, "sh", "-c", script)
	mustf(t, err, "start")
	w.Container = c
	fixture.Eventually(t, 30*time.Second, func() string {
		if w.out.String() != "ready\n" {
			return fmt.Sprintf("the container has printed %q", w.out.String())
		}
		return ""
	})
	mustf(t, r.Down(), "registry")
	writeFile(t, fmt.Sprintf("/proc/%d/root/tmp/go", c.PID), nil)
	fixture.Eventually(t, 10*time.Second, func() string {
		// The shell's child reads.
		tasks, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", c.PID, c.PID))
		mustf(t, err, "children")
		for _, pid := range strings.Fields(string(tasks)) {
			b, err := os.ReadFile("/proc/" + pid + "/stat")
			if err == nil && bytes.Contains(b, []byte(") D ")) {
				return ""
			}
		}
		return "nothing waits"
	})
	return w
}
