package e2e

import (
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

// micad hears of a pull before it is asked for a layer: containerd gets the image's configuration only after micad has looked for its
// index, and has it.
func TestAnnounced(t *testing.T) {
	r, ref, _ := debian(t, true)
	config := debianConfig(t)
	n := fixture.Node(t, node.Options{DemandOnly: true})
	fixture.Eventually(t, 20*time.Second, func() string {
		if b, err := os.ReadFile(n.Log("micad")); err != nil || !strings.Contains(string(b), "containerd tells of pulls") {
			return "micad has not found containerd"
		}
		return ""
	})
	looked := make(chan struct{})
	once := sync.OnceFunc(func() { time.AfterFunc(500*time.Millisecond, func() { close(looked) }) })
	r.SetRule(func(q *http.Request, _ int64) registry.Fault {
		switch {
		case strings.HasPrefix(q.UserAgent(), "micad/"):
			once()
		case strings.HasSuffix(q.URL.Path, config):
			return registry.Fault{Hold: looked}
		}
		return registry.Fault{}
	})
	start := time.Now()
	fixture.Pull(t, n, mica, ref)
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("the pull took %v", took)
	}
	if out := fixture.Run(t, n, mica, ref, "program"); !strings.HasSuffix(out, images.Ready+"\n") {
		t.Errorf("the program prints %q", out)
	}
}

// micad does not look for containerd where it is told that there is none for it.
func TestNotAnnounced(t *testing.T) {
	r, ref, _ := debian(t, true)
	config := debianConfig(t)
	n := fixture.Node(t, node.Options{DemandOnly: true, Micad: `containerd_address = "none"`})
	var configured, early atomic.Bool
	r.SetRule(func(q *http.Request, _ int64) registry.Fault {
		switch {
		case strings.HasPrefix(q.UserAgent(), "micad/") && !configured.Load():
			early.Store(true)
		case strings.HasSuffix(q.URL.Path, config):
			configured.Store(true)
		}
		return registry.Fault{}
	})
	time.Sleep(2 * time.Second) // it would have found containerd by then
	fixture.Pull(t, n, mica, ref)
	if early.Load() {
		t.Error("micad has looked for the index before it was asked for a layer")
	}
}

// debianConfig is the end of the path at which the Debian image's configuration is.
func debianConfig(t *testing.T) string {
	t.Helper()
	config, err := fixture.Debian(t).ConfigName()
	mustf(t, err, "config")
	return "/blobs/" + config.String()
}
