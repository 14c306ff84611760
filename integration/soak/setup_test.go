package soak_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/faults"
	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/images"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/registry"
)

var long = flag.Bool("long", false, "take minutes, as make soak does")

// pick returns the first where the soak is short, the second where it is long.
func pick[T any](short, minutes T) T {
	if *long {
		return minutes
	}
	return short
}

// push pushes an image of a tree in two layers with the probe, and its index.
func push(t *testing.T, r *registry.Registry, name string, tree known.Tree, probe []byte) string {
	t.Helper()
	img, err := images.Known(tree, "data", 2, images.File("probe", 0o755, probe))
	if err != nil {
		t.Fatal(err)
	}
	ref := fixture.Push(t, r, name, img)
	fixture.Index(t, r, name)
	return ref
}

func probe(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(fixture.Probe(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// load is eight processes that read in three containers.
type load struct {
	containers []*faults.Workload // the first process of each
	beside     []*faults.Workload // the others
	warmUp     *faults.Workload
}

// inEach is how many processes read in each container.
var inEach = []int{3, 3, 2}

func (l *load) processes() []*faults.Workload { return slices.Concat(l.containers, l.beside) }

// startLoad starts a container of each image, with processes that read a new
// file each step. The last image is on the node as a whole before that.
func startLoad(t *testing.T, n *node.Node, refs []string, trees []known.Tree, step time.Duration) *load {
	t.Helper()
	ctx := fixture.Context(t)
	warm := len(refs) - 1
	w, err := faults.Run(ctx, n, refs[warm], "warm-up", faults.Reads{Tree: trees[warm], Readers: 4})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	l := &load{warmUp: w}
	for i, ref := range refs {
		// all processes of a container share its files, and have an order of their own
		reads := faults.Reads{Tree: trees[i], Readers: 1, Step: step}
		first, err := faults.Run(ctx, n, ref, fmt.Sprint("load", i), reads)
		if err != nil {
			t.Fatal(err)
		}
		l.containers = append(l.containers, first)
		for p := 1; p < inEach[i]; p++ {
			w, err := first.Beside(ctx, fmt.Sprintf("load%d-%d", i, p), reads)
			if err != nil {
				t.Fatal(err)
			}
			l.beside = append(l.beside, w)
		}
	}
	for _, w := range l.processes() {
		if err := w.Read(); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// report adds up what all have seen until now.
func (l *load) report() known.Report {
	sum := known.Report{Passed: true}
	for _, w := range l.processes() {
		sum = sum.Add(w.Report())
	}
	return sum
}

// finish lets all read everything once more, and checks what they have seen.
func (l *load) finish(t *testing.T, limit time.Duration) {
	t.Helper()
	ctx := fixture.Context(t)
	// a container ends with its first process, and the others with it
	for _, group := range [][]*faults.Workload{l.beside, l.containers} {
		var all sync.WaitGroup
		for _, w := range group {
			all.Go(func() {
				if _, err := w.Finish(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	r := l.report()
	t.Logf("%d reads, %d failed, %d wrong, the longest took %v", r.Reads, r.Failed, r.Wrong, r.Longest.Round(time.Millisecond))
	if problem := (faults.Cell{Report: r}).Problem(limit); problem != "" {
		t.Error(problem)
	}
}

// remove ends the containers.
func (l *load) remove(t *testing.T) {
	t.Helper()
	for _, w := range append(l.containers, l.warmUp) {
		if err := w.Remove(fixture.Context(t)); err != nil {
			t.Error(err)
		}
	}
}
