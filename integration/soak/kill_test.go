package soak_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/mica-snapshotter/mica/integration/fixture"
	"github.com/mica-snapshotter/mica/integration/known"
	"github.com/mica-snapshotter/mica/integration/node"
	"github.com/mica-snapshotter/mica/integration/soak"
)

// micad is killed again and again, at moments of chance, under eight processes that read random
// files of three containers: no read fails, none is wrong, none takes long, and nothing is left
// behind.
func TestKills(t *testing.T) {
	kills, over := pick(10, 100), pick(30*time.Second, 5*time.Minute)
	limit := pick(5*time.Second, 2*time.Second) // the short one runs beside all other tests
	r := fixture.Registry(t)
	program := probe(t)
	var trees []known.Tree
	names := []string{"cold", "colder", "warm"}
	for i, name := range names {
		tree := known.Tree{Seed: uint64(30 + i), Files: 200, Size: 120 << 10}
		trees = append(trees, tree)
		push(t, r, name, tree, program)
	}
	for _, mode := range []string{"erofs", "fuse"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ctx := fixture.Context(t)
			front, err := r.Front()
			if err != nil {
				t.Fatal(err)
			}
			defer front.Close()
			var refs []string
			for _, name := range names {
				refs = append(refs, front.Host()+"/"+name+":test")
			}
			n := fixture.Node(t, node.Options{Mode: mode, Keep: true, DemandOnly: true})
			before, err := soak.Look(ctx, n)
			if err != nil {
				t.Fatal(err)
			}
			for _, ref := range refs {
				fixture.Pull(t, n, node.Snapshotter, ref)
			}
			l := startLoad(t, n, refs, trees, over/200)
			for _, at := range moments(kills, over) {
				time.Sleep(time.Until(at))
				_, err := n.SignalMicad(syscall.SIGKILL)
				for errors.Is(err, node.ErrNoMicad) || errors.Is(err, syscall.ESRCH) { // the last kill is not long ago
					time.Sleep(time.Millisecond)
					_, err = n.SignalMicad(syscall.SIGKILL)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			l.finish(t, limit)
			if err := n.AwaitMicad(ctx, 0, true); err != nil {
				t.Fatal(err)
			}
			l.remove(t)
			fixture.Ctr(t, n, append([]string{"images", "rm", "--sync"}, refs...)...)
			// micad keeps idle connections for 90 s, unless the registry ends them.
			if err := front.Down(); err != nil {
				t.Fatal(err)
			}
			fixture.Eventually(t, 2*time.Minute, func() string {
				after, err := soak.Look(ctx, n)
				if err != nil {
					return err.Error()
				}
				return after.More(before)
			})
		})
	}
}

// moments are so many from now on, by chance.
func moments(count int, over time.Duration) []time.Time {
	now := time.Now()
	var list []time.Time
	for range count {
		list = append(list, now.Add(rand.N(over)))
	}
	slices.SortFunc(list, time.Time.Compare)
	return list
}
