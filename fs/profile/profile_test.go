package profile

import (
	"errors"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

var (
	manifest = digest.FromString("manifest")
	layerA   = digest.FromString("a")
	layerB   = digest.FromString("b")
)

const ms = time.Millisecond

// at makes a range that one run read, in blocks.
func at(when time.Duration, layer digest.Digest, block, blocks int64) Range {
	return Range{Layer: layer, Off: block * BlockSize, Size: blocks * BlockSize, At: when, Runs: 1}
}

// times says how many runs read a range.
func times(runs int, r Range) Range {
	r.Runs = runs
	return r
}

// run makes a profile of one run.
func run(ranges ...Range) *Profile { return &Profile{Manifest: manifest, Runs: 1, Ranges: ranges} }

// runs makes a profile of several runs.
func runs(n int, ranges ...Range) *Profile {
	return &Profile{Manifest: manifest, Runs: n, Ranges: ranges}
}

func wantProfile(t *testing.T, got, want *Profile) {
	t.Helper()
	if got.Manifest != want.Manifest || got.Runs != want.Runs {
		t.Errorf("got manifest %s, %d runs; want %s, %d", got.Manifest, got.Runs, want.Manifest,
			want.Runs)
	}
	if len(got.Ranges) == 0 && len(want.Ranges) == 0 {
		return
	}
	if !reflect.DeepEqual(got.Ranges, want.Ranges) {
		t.Errorf("got ranges\n%+v\nwant\n%+v", got.Ranges, want.Ranges)
	}
}

func TestCheck(t *testing.T) {
	if err := run(at(0, layerA, 0, 2), at(0, layerB, 0, 2),
		at(0, layerA, 2, 1)).Check(Limits{}); err != nil {
		t.Errorf("neighbours: %v", err)
	}
	if err := run().Check(Limits{}); err != nil {
		t.Errorf("no ranges: %v", err)
	}
	with := func(change func(*Range)) *Profile {
		r := at(0, layerA, 0, 1)
		change(&r)
		return run(r)
	}
	for name, c := range map[string]struct {
		p   *Profile
		lim Limits
	}{
		"no manifest":      {p: &Profile{Runs: 1}},
		"manifest, no hex": {p: &Profile{Manifest: "sha256:xyz", Runs: 1}},
		"no runs":          {p: &Profile{Manifest: manifest}},
		"many runs":        {p: runs(maxRuns + 1)},
		"no layer":         {p: with(func(r *Range) { r.Layer = "" })},
		"negative offset":  {p: with(func(r *Range) { r.Off = -1 })},
		"empty":            {p: with(func(r *Range) { r.Size = 0 })},
		"negative size":    {p: with(func(r *Range) { r.Size = -1 })},
		"overflow":         {p: with(func(r *Range) { r.Off, r.Size = maxOffset, math.MaxInt64 })},
		"behind the end":   {p: with(func(r *Range) { r.Off = maxOffset })},
		"negative time":    {p: with(func(r *Range) { r.At = -1 })},
		"read by none":     {p: with(func(r *Range) { r.Runs = 0 })},
		"read by too many": {p: with(func(r *Range) { r.Runs = 2 })},
		"overlap": {p: run(at(0, layerA, 5, 2), at(0, layerB, 6, 1),
			at(1, layerA, 6, 1))},
		"twice": {p: run(at(0, layerA, 5, 1), at(0, layerA, 5, 1))},
		"too many ranges": {p: run(at(0, layerA, 0, 1), at(0, layerA, 5, 1)),
			lim: Limits{Ranges: 1}},
		"too many layers": {p: run(at(0, layerA, 0, 1), at(0, layerB, 5, 1)),
			lim: Limits{Layers: 1}},
		"long after a week": {p: with(func(r *Range) { r.At = maxAt + 1 })},
	} {
		if err := c.p.Check(c.lim); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
