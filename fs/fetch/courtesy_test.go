package fetch

import (
	"runtime"
	"testing"
	"time"
)

func TestCourtesy(t *testing.T) {
	now := time.Now()
	busy := load{at: now.Add(time.Hour), cores: float64(runtime.NumCPU())} // not measured again
	idle := load{at: now.Add(time.Hour)}
	for name, tc := range map[string]struct {
		c    courtesy
		want time.Duration
	}{
		"no start":                {courtesy{load: busy}, 0},
		"start, idle machine":     {courtesy{until: now.Add(time.Second), last: now, load: idle}, 0},
		"start, busy machine":     {courtesy{until: now.Add(time.Second), last: now, load: busy}, lookAgain},
		"busy, and long held":     {courtesy{until: now.Add(time.Second), last: now.Add(-trickle), load: busy}, 0},
		"start that is long over": {courtesy{until: now.Add(-time.Second), last: now, load: busy}, 0},
	} {
		if got := tc.c.hold(now); got != tc.want {
			t.Errorf("%s: held for %v, want %v", name, got, tc.want)
		}
	}
}

// What this process uses is a part of what the machine uses, and not counted as others' load.
func TestLoad(t *testing.T) {
	var l load
	begin := time.Now()
	l.others(begin)
	busy, own := l.busy, l.own
	for time.Since(begin) < 300*time.Millisecond { // one core, or what others leave of it
	}
	others := l.others(time.Now())
	busy, own = l.busy-busy, l.own-own
	if own < 30*time.Millisecond || busy < own-4*tick {
		t.Errorf("the machine worked %v, of that this process %v", busy, own)
	}
	if want := float64(busy-own) / float64(l.at.Sub(begin)); others < want-0.01 || others > want+0.01 {
		t.Errorf("others used %.2f cores, want %.2f", others, want)
	}
}
