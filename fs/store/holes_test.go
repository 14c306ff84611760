package store

import (
	"path/filepath"
	"testing"
)

// TestSettled: zeros where something else was written are not settled until it is durable, and then they are, whatever is written elsewhere.
func TestSettled(t *testing.T) {
	var saving func()
	st, err := openDisk(t.TempDir(), faulty{fault: func(op, name string) error {
		if op == "sync" && filepath.Base(name) == deviceName && saving != nil {
			saving()
		}
		return nil
	}})
	must(t, err)
	s := newSample(1, 10)
	l := s.mustCreate(t, st, Lazy)
	expect := func(when string, want bool, spans ...int) {
		t.Helper()
		for _, i := range spans {
			if got := l.Settled(make([]byte, len(s.span(i))), s.starts[i]); got != want {
				t.Errorf("%s: zeros in span %d are settled: %v, want %v", when, i, got, want)
			}
		}
	}
	s.write(t, l, 1)
	expect("written", false, 1)
	saved := 0
	saving = func() {
		saved++
		expect("while it is saved", false, 1)
		s.write(t, l, 5)
	}
	must(t, st.Flush())
	saving = nil
	if saved != 1 {
		t.Errorf("saved %d times, want 1", saved)
	}
	expect("saved", true, 1)
	expect("written meanwhile", false, 5)
	must(t, st.Flush())
	expect("both saved", true, 1, 5)
	s.write(t, l, 7)
	expect("saved long ago", true, 1, 5)
	expect("written", false, 7)
	if l.Settled(make([]byte, s.starts[8]-s.starts[1]), s.starts[1]) {
		t.Error("zeros in all of these are settled")
	}
	must(t, l.Close())
	must(t, st.Close())
}
