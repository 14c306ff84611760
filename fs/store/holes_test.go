package store

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// punching is a disk that keeps blocks of zeros as holes when a file is synced, as ZFS does, and
// loses one block of each device file where it is told to.
type punching struct {
	files.OS
	lose *int64 // offset of the block; negative: none
}

const punched = 4096 // bytes of a block

func (d punching) Open(name string, flag int) (files.File, error) {
	f, err := d.OS.Open(name, flag)
	if err != nil || filepath.Base(name) != deviceName || flag&unix.O_DIRECT != 0 {
		return f, err
	}
	return punchingFile{f, d}, nil
}

type punchingFile struct {
	files.File
	d punching
}

func (f punchingFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	b := make([]byte, punched)
	for off := int64(0); off < size; off += punched {
		n, err := f.ReadAt(b, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if lose := *f.d.lose; zero(b[:n]) || lose >= off && lose < off+punched {
			if err := f.PunchHole(off, punched); err != nil {
				return err
			}
		}
	}
	return f.File.Sync()
}

// hollow makes a sample a part of which is zeros: some spans whole, others at an end or in the
// middle.
func hollow(seed uint64) *sample {
	s := newSample(seed, 200)
	r := rand.New(rand.NewPCG(seed, 5))
	for range 12 {
		from := r.IntN(len(s.device))
		clear(s.device[from:min(from+r.IntN(40_000), len(s.device))])
	}
	clear(s.device[len(s.device)-9000:])
	return s
}

// TestZerosAsHoles: zeros that the file system keeps as holes are not lost, and what is lost beside
// them is found.
func TestZerosAsHoles(t *testing.T) {
	for seed := range uint64(20) {
		for _, state := range []State{Lazy, Complete} {
			none := int64(-1)
			st, err := OpenOn(t.TempDir(), punching{lose: &none})
			must(t, err)
			s := hollow(seed)
			l := s.mustCreate(t, st, state)
			all := make([]int, s.spans())
			for i := range all {
				all[i] = i
			}
			if state == Lazy {
				r := rand.New(rand.NewPCG(seed, 6))
				r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				s.write(t, l, all[:100]...)
				must(t, st.Flush())
				s.write(t, l, all[100:]...)
			}
			must(t, st.Flush())
			if !l.AllPresent() || st.faults.lately() {
				t.Fatalf("seed %d, %s: %d spans of %d are there",
					seed, state, l.present.count.Load(), s.spans())
			}
			s.mustHave(t, l, all...)
			must(t, l.Close())
			must(t, st.Close())
		}
	}
}

// TestLostBesideZeros: a block that the disk loses is found wherever it lies, unless it had nothing
// but zeros.
func TestLostBesideZeros(t *testing.T) {
	for seed := range uint64(20) {
		for _, state := range []State{Lazy, Complete} {
			s := hollow(seed)
			r := rand.New(rand.NewPCG(seed, 7))
			lose := int64(0)
			for {
				lose = r.Int64N(int64(len(s.device))) / punched * punched
				if !zero(s.device[lose:min(lose+punched, int64(len(s.device)))]) {
					break
				}
			}
			dir := t.TempDir()
			st, err := OpenOn(dir, punching{lose: &lose})
			must(t, err)
			l := s.mustCreate(t, st, state)
			if state == Lazy {
				for i := range s.spans() {
					s.write(t, l, i)
				}
			}
			if err := st.Flush(); !errors.Is(err, unix.EIO) {
				t.Errorf("seed %d, %s: block %d is lost, and that is not found: %v",
					seed, state, lose, err)
			}
			must(t, l.Close())
			must(t, st.Close())
			must(t, os.RemoveAll(dir))
		}
	}
}

// TestSettled: zeros where something else was written are not settled until it is durable, and then
// they are, whatever is written elsewhere.
func TestSettled(t *testing.T) {
	var saving func()
	st, err := OpenOn(t.TempDir(), faulty{fault: func(op, name string) error {
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
			if got := l.settled(make([]byte, len(s.span(i))), s.starts[i]); got != want {
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
	if l.settled(make([]byte, s.starts[8]-s.starts[1]), s.starts[1]) {
		t.Error("zeros in all of these are settled")
	}
	must(t, l.Close())
	must(t, st.Close())
}
