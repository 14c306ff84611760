package profile

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestMerge(t *testing.T) {
	for name, c := range map[string]struct {
		in   []*Profile
		want *Profile
	}{
		"one":  {[]*Profile{run(at(0, layerA, 3, 1))}, run(at(0, layerA, 3, 1))},
		"nils": {[]*Profile{nil, run(at(0, layerA, 3, 1)), nil}, run(at(0, layerA, 3, 1))},
		"disjoint": {
			[]*Profile{run(at(5*ms, layerA, 0, 1)), run(at(ms, layerB, 0, 1))},
			runs(2, at(ms, layerB, 0, 1), at(5*ms, layerA, 0, 1)),
		},
		"same": {
			[]*Profile{run(at(0, layerA, 0, 4)), run(at(0, layerA, 0, 4))},
			runs(2, times(2, at(0, layerA, 0, 4))),
		},
		"overlap": {
			[]*Profile{run(at(0, layerA, 0, 4)), run(at(10*ms, layerA, 2, 4))},
			runs(2, at(0, layerA, 0, 2), times(2, at(0, layerA, 2, 2)), at(10*ms, layerA, 4, 2)),
		},
		"inside": {
			[]*Profile{run(at(0, layerA, 0, 4)), run(at(0, layerA, 1, 1))},
			runs(2, at(0, layerA, 0, 1), times(2, at(0, layerA, 1, 1)), at(0, layerA, 2, 2)),
		},
		"median of three": {
			[]*Profile{run(at(900*ms, layerA, 0, 1)), run(at(100*ms, layerA, 0, 1)),
				run(at(200*ms, layerA, 0, 1))},
			runs(3, times(3, at(200*ms, layerA, 0, 1))),
		},
		"median by weight": {
			[]*Profile{runs(5, times(5, at(900*ms, layerA, 0, 1))), run(at(100*ms, layerA, 0, 1))},
			runs(6, times(6, at(900*ms, layerA, 0, 1))),
		},
		"neighbours of one time join": {
			[]*Profile{run(at(0, layerA, 0, 1)), run(at(20*ms, layerA, 1, 1))},
			runs(2, at(0, layerA, 0, 2)),
		},
		"neighbours of two times do not": {
			[]*Profile{run(at(0, layerA, 0, 1)), run(at(time.Second, layerA, 1, 1))},
			runs(2, at(0, layerA, 0, 1), at(time.Second, layerA, 1, 1)),
		},
		"rare ones sink": {
			[]*Profile{runs(7, times(7, at(time.Second, layerA, 5, 1)),
				times(2, at(2*time.Second, layerA, 9, 1))), run(at(0, layerB, 0, 1))},
			runs(8, times(7, at(time.Second, layerA, 5, 1)), at(0, layerB, 0, 1),
				times(2, at(2*time.Second, layerA, 9, 1))),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := Merge(c.in...)
			wantProfile(t, got, c.want)
			if err := got.Check(Limits{}); err != nil {
				t.Error(err)
			}
		})
	}
	if p := Merge(nil, nil); p != nil {
		t.Errorf("of none: %v", p)
	}
}

// randomRun reads runs of blocks in two layers.
func randomRun(rng *rand.Rand) *Profile {
	now := time.Time{}
	r := NewRecorder(manifest, func() time.Time { return now })
	for range rng.IntN(30) {
		now = now.Add(time.Duration(rng.IntN(100)) * ms)
		r.Read([]digest.Digest{layerA, layerB}[rng.IntN(2)], rng.Int64N(40)*BlockSize,
			(1+rng.Int64N(8))*BlockSize)
	}
	return r.Profile()
}

// A merged profile names each byte with the number of runs that read it.
func TestMergeCounts(t *testing.T) {
	type block struct {
		layer digest.Digest
		n     int64
	}
	count := func(into map[block]int, p *Profile) {
		for _, r := range p.Ranges {
			for b := r.Off / BlockSize; b < r.End()/BlockSize; b++ {
				into[block{r.Layer, b}] += r.Runs
			}
		}
	}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		want, got := map[block]int{}, map[block]int{}
		var all []*Profile
		for range 1 + rng.IntN(6) {
			p := randomRun(rng)
			count(want, p)
			all = append(all, p)
		}
		p := Merge(all...)
		count(got, p)
		if err := p.Check(Limits{}); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(got) != len(want) {
			t.Fatalf("seed %d: %d blocks, want %d", seed, len(got), len(want))
		}
		for b, n := range want {
			if got[b] != n {
				t.Fatalf("seed %d: block %v was read by %d, want %d", seed, b, got[b], n)
			}
		}
	}
}

func TestUpdateForgets(t *testing.T) {
	always, once, lately := at(0, layerA, 0, 1), at(ms, layerA, 10, 1), at(ms, layerB, 0, 1)
	p := run(always, once)
	for i := range 200 {
		next := run(always)
		if i >= 190 {
			next = run(always, lately)
		}
		p = Update(p, next)
		if p.Runs > MaxRuns {
			t.Fatalf("%d runs", p.Runs)
		}
		if err := p.Check(Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.Ranges) != 2 || p.Ranges[0].Runs != p.Runs || p.Ranges[1].Layer != layerB {
		t.Errorf("after 200 runs: %+v of %d", p.Ranges, p.Runs)
	}
}

func TestTrim(t *testing.T) {
	p := run(at(0, layerA, 0, 1), at(ms, layerB, 0, 1), at(2*ms, layerB, 5, 1))
	wantProfile(t, p.Trim(2), run(p.Ranges[:2]...))
	wantProfile(t, p.Trim(3), p)
}
