package soak_test

import (
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
)

// The registry is away for a while, under load: reads of what is not on the node wait, and go on by
// themselves.
func TestOutage(t *testing.T) {
	away := pick(20*time.Second, 3*time.Minute)
	r := fixture.Registry(t)
	program := probe(t)
	var refs []string
	var trees []known.Tree
	for i, name := range []string{"a", "b", "c"} {
		tree := known.Tree{Seed: uint64(40 + i), Files: 200, Size: 120 << 10}
		trees = append(trees, tree)
		refs = append(refs, push(t, r, name, tree, program))
	}
	n := fixture.Node(t, node.Options{Keep: true, DemandOnly: true})
	for _, ref := range refs {
		fixture.Pull(t, n, node.Snapshotter, ref)
	}
	l := startLoad(t, n, refs, trees, 100*time.Millisecond)
	time.Sleep(time.Second)
	if err := r.Down(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(away)
	if waited := l.report().Longest; waited < away/2 {
		t.Errorf("no read waited for the registry: the longest took %v", waited)
	}
	if err := r.Up(); err != nil {
		t.Fatal(err)
	}
	const after = 15 * time.Second // after the outage, until a read that waited has its bytes
	l.finish(t, away+after)
}
