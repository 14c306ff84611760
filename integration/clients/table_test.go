package clients

import (
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

func TestMain(m *testing.M) { fixture.Main(m) }

// update has all clients tried, and what they did written into docs/clients.md.
var update = flag.Bool("update", false, "try all clients, and write docs/clients.md")

func mustf(t *testing.T, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// table collects what a client does with a lazy image, and what it downloads for it.
type table struct {
	t    *testing.T
	r    *registry.Registry
	size int64 // of the image, bytes
	rows strings.Builder
}

// try does one thing after another, and stops the test where it fails. It returns how much of the
// image was downloaded for it, 1 being all.
func (x *table) try(what string, do func() error) float64 {
	x.t.Helper()
	x.r.ResetTraffic()
	start := time.Now()
	mustf(x.t, do(), what)
	part := float64(x.r.Traffic().Down) / float64(x.size)
	fmt.Fprintf(&x.rows, "| `%s` | %.1f s | %.1f %% |\n", what, time.Since(start).Seconds(), 100*part)
	return part
}

// write writes the table into docs/clients.md, where that is wanted.
func (x *table) write(name string) {
	x.t.Helper()
	text := fmt.Sprintf("| command | took | downloaded of %.0f MB |\n|---|---|---|\n%s",
		float64(x.size)/1e6, x.rows.String())
	x.t.Log("\n" + text)
	if *update && !x.t.Failed() {
		root, err := node.Checkout()
		mustf(x.t, err, "checkout")
		mustf(x.t, faults.Update(filepath.Join(root, "docs/clients.md"), name, text), "docs")
	}
}
