package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	st := open(t, dir)
	if _, err := Open(dir); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("second Open: %v", err)
	}
	must(t, st.Close())
	must(t, open(t, dir).Close())
}

func TestOpenCleansUp(t *testing.T) {
	dir, s := t.TempDir(), newSample(5, 3)
	st := open(t, dir)
	in, err := st.Create(s.name)
	must(t, err)
	_, err = in.Device().Write(make([]byte, 2*spoolBuffer))
	must(t, err)
	must(t, st.Close()) // as a crash would, but for the lock
	other := filepath.Join(dir, tmpName, "somebody-elses")
	must(t, os.WriteFile(other, nil, 0o600))
	if left, _ := os.ReadDir(filepath.Join(dir, tmpName)); len(left) != 2 {
		t.Fatalf("tmp holds %v", left)
	}
	st = open(t, dir)
	if left, _ := os.ReadDir(filepath.Join(dir, tmpName)); len(left) != 1 || left[0].Name() != filepath.Base(other) {
		t.Errorf("tmp holds %v", left)
	}
	must(t, in.Abort())
	must(t, st.Close())
}

// TestRemoveWhileOpen removes a layer that is in use and brings it back.
func TestRemoveWhileOpen(t *testing.T) {
	dir, s := t.TempDir(), newSample(6, 20)
	st := open(t, dir)
	first := s.mustCreate(t, st, Lazy)
	s.write(t, first, 0, 1, 2)
	idle := s.layer(t, st) // the same Layer
	must(t, st.Remove(s.name))
	must(t, st.Remove(s.name))
	if _, err := s.open(st); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
	assertEmpty(t, filepath.Join(dir, tmpName))
	second := s.mustCreate(t, st, Lazy)
	s.write(t, second, 5)
	// The old one goes on by itself and never reaches the new one's folder.
	s.write(t, first, 10, 11)
	s.mustHave(t, first, 0, 1, 2, 10, 11)
	must(t, st.Flush())
	must(t, first.Close())
	must(t, idle.Close())
	s.mustHave(t, second, 5)
	must(t, second.Close())
	must(t, st.Close())

	st = open(t, dir)
	second = s.layer(t, st)
	s.mustHave(t, second, 5)
	must(t, second.Close())
	must(t, st.Close())
}

// TestRemovedLayerOpensNoOther: a layer that never opened its device is removed;
// its first read must not see the folder that has its name by then.
func TestRemovedLayerOpensNoOther(t *testing.T) {
	dir, s := t.TempDir(), newSample(6, 20)
	st := open(t, dir)
	first := s.mustCreate(t, st, Lazy)
	must(t, st.Remove(s.name))
	second := s.mustCreate(t, st, Complete)
	if _, err := first.readAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read of a removed layer: %v", err)
	}
	must(t, first.Close())
	must(t, second.Close())
	must(t, st.Close())
}

func TestDamage(t *testing.T) {
	s := newSample(7, 100)
	other := newSample(8, 100)
	flip := func(name string, off int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(dir + "/" + name)
			must(t, err)
			b[off] ^= 0x10
			must(t, os.WriteFile(dir+"/"+name, b, 0o600))
		}
	}
	truncate := func(name string, n int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) { must(t, os.Truncate(dir+"/"+name, n)) }
	}
	both := func(fs ...func(*testing.T, string)) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			for _, f := range fs {
				f(t, dir)
			}
		}
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { must(t, os.Remove(dir+"/"+name)) }
	}
	// Two flushes: slot 1 has span 3, slot 0 spans 3 and 50.
	for name, c := range map[string]struct {
		harm    func(*testing.T, string)
		state   State
		want    []int
		damaged bool
	}{
		"nothing":              {harm: both(), want: []int{3, 50}},
		"newer slot":           {harm: flip(presentName, presentHeader), want: []int{3}},
		"newer slot's padding": {harm: flip(presentName, 4095), want: []int{3}},
		"older slot":           {harm: flip(presentName, 4096+16), want: []int{3, 50}},
		"both slots":           {harm: both(flip(presentName, 24), flip(presentName, 4096+72))},
		"short map":            {harm: truncate(presentName, 100)},
		"map with one slot":    {harm: truncate(presentName, 4096), want: []int{3, 50}},
		"empty map":            {harm: truncate(presentName, 0)},
		"no map":               {harm: remove(presentName)},
		"another layer's map": {harm: func(t *testing.T, dir string) {
			rec := other.record(Lazy)
			rec.DeviceSize = int64(len(s.device))
			m := rec.mapping()
			b := m.encode(&presence{generation: 9, bytes: m.deviceSize, bits: fullBits(100)})
			must(t, os.WriteFile(dir+"/"+presentName, append(b, b...), 0o600))
		}},
		"map of another span table": {harm: func(t *testing.T, dir string) {
			rec := s.record(Lazy)
			rec.Spans = 99
			m := rec.mapping()
			b := m.encode(&presence{generation: 9, bytes: m.deviceSize, bits: fullBits(99)})
			must(t, os.WriteFile(dir+"/"+presentName, append(b, b...), 0o600))
		}},
		"short device":               {harm: truncate(deviceName, 5)},
		"long device":                {harm: truncate(deviceName, 1<<20)},
		"no device":                  {harm: remove(deviceName)},
		"short device of a complete": {harm: truncate(deviceName, 5), state: Verified},
		"no device of a complete":    {harm: remove(deviceName), state: Verified},
		"no record":                  {harm: remove(recordName), damaged: true},
		"empty record":               {harm: truncate(recordName, 0), damaged: true},
		"half a record":              {harm: truncate(recordName, 100), damaged: true},
		"newer record": {harm: func(t *testing.T, dir string) {
			b, err := os.ReadFile(dir + "/" + recordName)
			must(t, err)
			must(t, os.WriteFile(dir+"/"+recordName, bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 2`), 1), 0o600))
		}, damaged: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			st := open(t, dir)
			l := s.mustCreate(t, st, c.state)
			folder := l.Dir()
			if c.state == Lazy {
				s.write(t, l, 3)
				must(t, st.Flush())
				s.write(t, l, 50)
			}
			must(t, l.Close())
			must(t, st.Close())
			c.harm(t, folder)

			st = open(t, dir)
			l, err := s.open(st)
			if c.damaged {
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("opening says %v", err)
				}
				must(t, st.Remove(s.name))
				l = s.mustCreate(t, st, Lazy)
			} else {
				must(t, err)
			}
			s.mustHave(t, l, c.want...)
			// What was lost can be brought again, and is there after another run.
			s.write(t, l, 7)
			must(t, l.Close())
			must(t, st.Close())
			st = open(t, dir)
			l = s.layer(t, st)
			s.mustHave(t, l, append(c.want, 7)...)
			must(t, l.Close())
			must(t, st.Close())
		})
	}
}

func fullBits(n int) []uint64 {
	s := newSet(n)
	s.fill()
	return s.snapshot()
}

// TestIdleLayersHoldNoFiles opens many layers.
func TestIdleLayersHoldNoFiles(t *testing.T) {
	st := open(t, t.TempDir())
	var all []*Layer
	for i := range 300 {
		s := newSample(uint64(i), 2)
		in, err := st.Create(s.name)
		must(t, err)
		_, err = in.Index().Write(s.index())
		must(t, err)
		l, err := in.Commit(s.record(Lazy))
		must(t, err)
		all = append(all, l)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	if len(fds) > 100 {
		t.Errorf("%d files are open for %d idle layers", len(fds), len(all))
	}
	for _, l := range all {
		must(t, l.Close())
	}
	must(t, st.Close())
}

// TestParallel opens, writes, flushes, closes and removes all at once.
func TestParallel(t *testing.T) {
	dir := t.TempDir()
	st := open(t, dir)
	var samples []*sample
	for i := range 3 {
		samples = append(samples, newSample(uint64(i), 64))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run, work sync.WaitGroup
	run.Go(func() { must(t, st.Run(ctx)) })
	for k := range 8 {
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(k), 3))
			for range 150 {
				s := samples[r.IntN(len(samples))]
				if r.IntN(10) == 0 {
					if err := st.Remove(s.name); err != nil {
						t.Error(err)
					}
					continue
				}
				l, err := s.open(st)
				if errors.Is(err, fs.ErrNotExist) {
					l, err = s.create(st, State(r.IntN(2)))
				}
				if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				for range 5 {
					i := r.IntN(s.spans())
					err := l.WriteSpan(i, s.span(i))
					if err != nil && !errors.Is(err, fs.ErrNotExist) {
						t.Error(err)
					}
					got := make([]byte, len(s.span(i)))
					if l.Present(i) {
						if _, err := l.readAt(got, s.starts[i]); err == nil && !bytes.Equal(got, s.span(i)) {
							t.Errorf("span %d is wrong", i)
						}
					}
				}
				if r.IntN(4) == 0 {
					if err := st.Flush(); err != nil {
						t.Error(err)
					}
				}
				if err := l.Close(); err != nil && !strings.Contains(err.Error(), "was removed") {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	cancel()
	run.Wait()
	must(t, st.Close())
	st = open(t, dir)
	for _, s := range samples {
		l, err := s.open(st)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		if err := s.check(l); err != nil {
			t.Error(err)
		}
		must(t, l.Close())
	}
	must(t, st.Close())
	if n := len(st.open) + len(st.dirty); n > 0 {
		t.Errorf("%d layers are left in the tables", n)
	}
}
