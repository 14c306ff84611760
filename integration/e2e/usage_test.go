package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/node"
)

// TestAgainAndAgain: an image that comes, is read and goes leaves nothing behind in what micad
// counts, is listed once, and goes with one line of the log a layer.
func TestAgainAndAgain(t *testing.T) {
	ref := small(t, "again")
	n := fixture.Node(t, node.Options{DemandOnly: true})
	cache := func() cache.Status {
		var out struct {
			Cache cache.Status `json:"cache"`
		}
		text, err := n.Mica(fixture.Context(t), "ps", "--json", "--address", n.MicadAddress())
		mustf(t, err, "mica ps")
		mustf(t, json.Unmarshal([]byte(text), &out), "mica ps")
		return out.Cache
	}
	empty, disk := cache().Used, fixture.DiskUsage(t, n)
	const rounds = 3
	for round := range rounds {
		fixture.Pull(t, n, mica, ref)
		fixture.Run(t, n, mica, ref, "c1", "/probe", "echo", "here")
		if c := cache(); c.Used <= empty {
			t.Errorf("round %d: %d bytes are counted of an image that runs", round, c.Used)
		}
		du, err := n.Mica(fixture.Context(t), "du", "--address", n.MicadAddress())
		mustf(t, err, "mica du")
		repository := strings.TrimSuffix(ref, ":test")
		if strings.Count(du, repository) != 1 || !strings.Contains(du, ref) {
			t.Errorf("round %d: mica du says\n%s", round, du)
		}
		fixture.Ctr(t, n, "images", "rm", "--sync", ref)
		fixture.Freed(t, n, 0, disk+1<<20) // databases grow and stay
		if c := cache(); c.Used != empty {
			t.Errorf("round %d: %d bytes are counted, nothing is there", round, c.Used)
		}
	}
	log, err := os.ReadFile(n.Log("micad"))
	mustf(t, err, "log")
	if got := strings.Count(string(log), `msg="layer removed"`); got != rounds {
		t.Errorf("%d lines about removed layers, %d were removed", got, rounds)
	}
	if strings.Contains(string(log), "level=ERROR") {
		t.Errorf("errors in micad's log:\n%s", log)
	}
}
