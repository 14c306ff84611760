package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// watched is a disk that counts what is done with O_DIRECT, and fails it where it is told
// to.
type watched struct {
	files.OS
	opens, reads atomic.Int64
	dropped      atomic.Int64              // bytes
	open         error                     // of Open with O_DIRECT
	read         func([]byte) (int, error) // instead of the read; nil: the read
	memory, unit int64                     // instead of DirectAlign's; 0: the real ones
}

func (d *watched) Open(name string, flag int) (files.File, error) {
	direct := flag&unix.O_DIRECT != 0
	if direct {
		d.opens.Add(1)
		if d.open != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: d.open}
		}
	}
	f, err := d.OS.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return &watchedFile{f, d, direct}, nil
}

type watchedFile struct {
	files.File
	d      *watched
	direct bool
}

func (f *watchedFile) ReadAt(p []byte, off int64) (int, error) {
	if f.direct {
		f.d.reads.Add(1)
		if f.d.read != nil {
			return f.d.read(p)
		}
	}
	return f.File.ReadAt(p, off)
}

func (f *watchedFile) DirectAlign() (memory, unit int64) {
	if f.d.unit != 0 {
		return f.d.memory, f.d.unit
	}
	return f.File.DirectAlign()
}

func (f *watchedFile) DropCache(off, n int64) error {
	f.d.dropped.Add(n)
	return f.File.DropCache(off, n)
}

// newLargeSample is a sample with spans of up to 600 KiB.
func newLargeSample(seed uint64, spans int) *sample {
	r := rand.New(rand.NewPCG(seed, 2))
	s := &sample{name: digest.FromString("large layer"), starts: []int64{0}}
	for range spans {
		s.starts = append(s.starts, s.starts[len(s.starts)-1]+1+r.Int64N(600<<10))
	}
	s.device = randomBytes(r, int(s.starts[spans]))
	return s
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32()) | 1 // never zero, which is what a hole reads as
	}
	return b
}

// cool makes all that is durable leave the page cache.
func cool(t *testing.T, l *Layer) {
	t.Helper()
	must(t, l.store.drop(0))
}

// alignedBuffer returns n bytes, the first of them skew behind the begin of a page.
func alignedBuffer(n, skew int) []byte {
	page := os.Getpagesize()
	b := make([]byte, n+skew+page)
	at := (page - int(uintptr(unsafe.Pointer(&b[0]))%uintptr(page))) % page
	return b[at+skew:][:n]
}

// TestDirectReadsTheSame compares reads of all lengths and alignments with the
// content, while spans come in and are made durable.
func TestDirectReadsTheSame(t *testing.T) {
	d := &watched{}
	st, err := OpenOn(t.TempDir(), d)
	must(t, err)
	s := newLargeSample(1, 100)
	l := s.mustCreate(t, st, Lazy)
	half := s.spans() / 2
	s.write(t, l, s.all()[:half]...)
	must(t, st.Flush())
	cool(t, l)

	var filling, reading sync.WaitGroup
	var filled atomic.Int64
	filled.Store(s.starts[half])
	filling.Go(func() {
		for i := half; i < s.spans(); i++ {
			if err := l.WriteSpan(i, s.span(i)); err != nil {
				t.Error(err)
			}
			filled.Store(s.starts[i+1])
			if i%5 == 0 {
				if err := errors.Join(st.Flush(), st.drop(0)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for seed := range 3 {
		reading.Go(func() {
			r := rand.New(rand.NewPCG(uint64(seed), 3))
			for range 300 {
				end := filled.Load()
				n := min(1+r.Int64N(1<<20), end)
				off := r.Int64N(end - n + 1)
				skew := r.IntN(4096)
				switch r.IntN(3) {
				case 0: // as EROFS asks
					off, n, skew = off&^511, n&^511, 0
				case 1:
					off, skew = off&^4095, 0
				}
				p := alignedBuffer(int(n), skew)
				if got, err := l.readAt(p, off); got != len(p) || !bytes.Equal(p, s.device[off:off+n]) {
					t.Errorf("%d bytes at %d into a buffer at page+%d: read %d, %v, or wrong bytes", n, off, skew, got, err)
				}
			}
		})
	}
	filling.Wait()
	reading.Wait()
	// With nobody at work on the layer, all large reads are direct.
	must(t, st.Flush())
	cool(t, l)
	r := rand.New(rand.NewPCG(4, 3))
	for range 50 {
		before := d.reads.Load()
		n := directFrom + r.Int64N(1<<20)&^511
		off := r.Int64N(l.size-n) &^ 511
		p := alignedBuffer(int(n), 0)
		if got, err := l.readAt(p, off); got != len(p) || !bytes.Equal(p, s.device[off:off+n]) {
			t.Errorf("%d bytes at %d: read %d, %v, or wrong bytes", n, off, got, err)
		}
		if d.reads.Load() == before {
			t.Errorf("%d bytes at %d were not read directly", n, off)
		}
	}
	s.mustHave(t, l, s.all()...)
	must(t, l.VerifyWhole(t.Context()))
	must(t, l.Close())
	must(t, st.Close())
}

// TestDirectAtTheEnd reads up to the device's end and beyond.
func TestDirectAtTheEnd(t *testing.T) {
	for _, unit := range []int64{512, 4096} {
		d := &watched{memory: 512, unit: unit}
		st, err := OpenOn(t.TempDir(), d)
		must(t, err)
		s := newLargeSample(2, 10)
		l := s.mustCreate(t, st, Complete)
		must(t, st.Flush())
		cool(t, l)
		want := append(slices.Clone(s.device), make([]byte, l.Size()-l.size)...)
		for _, n := range []int64{directFrom, directFrom + 512, 300<<10 + 512, 1 << 20} {
			p := alignedBuffer(int(n), 0)
			off := l.Size() - n
			cool(t, l)
			before := d.reads.Load()
			if got, err := l.readAt(p, off); got != len(p) || !bytes.Equal(p, want[off:]) {
				t.Errorf("unit %d: last %d bytes: read %d, %v, or wrong bytes", unit, n, got, err)
			}
			if d.reads.Load() == before {
				t.Errorf("unit %d: the last %d bytes were not read directly", unit, n)
			}
			if got, err := l.readAt(p, off+100); got != len(p)-100 || !bytes.Equal(p[:got], want[off+100:]) {
				t.Errorf("unit %d: beyond the end: read %d, %v, or wrong bytes", unit, got, err)
			}
		}
		must(t, l.Close())
		must(t, st.Close())
	}
}

// TestDirectOnlyWhereItPays: small reads, what is not durable, and what the page
// cache holds are read the ordinary way.
func TestDirectOnlyWhereItPays(t *testing.T) {
	f := &failing{op: "sync", base: deviceName, err: unix.EIO}
	d := &watched{}
	st, err := OpenOn(t.TempDir(), struct{ *faultyWatched }{&faultyWatched{d, faulty{fault: f.fault}}})
	must(t, err)
	s := &sample{name: digest.FromString("x"), starts: []int64{0, 1 << 20, 2 << 20}}
	s.device = randomBytes(rand.New(rand.NewPCG(1, 1)), 2<<20)
	l := s.mustCreate(t, st, Lazy)
	read := func(what string, n int, off int64, direct bool) {
		t.Helper()
		before := d.reads.Load()
		p := alignedBuffer(n, 0)
		if got, err := l.readAt(p, off); got != n || !bytes.Equal(p, s.device[off:][:n]) {
			t.Errorf("%s: read %d, %v, or wrong bytes", what, got, err)
		}
		if got := d.reads.Load() > before; got != direct {
			t.Errorf("%s: read directly: %v", what, got)
		}
	}
	s.write(t, l, 0)
	read("not durable", 1<<20, 0, false)
	must(t, st.Flush())
	read("durable, cached", 1<<20, 0, false)
	cool(t, l)
	if d.dropped.Load() != l.Size() {
		t.Errorf("%d bytes were dropped when they had become durable", d.dropped.Load())
	}
	read("dropped", 1<<20, 0, true)
	read("small", directFrom-1, 0, false)
	read("small and aligned", 4096, 0, false)

	s.write(t, l, 1)
	cool(t, l)
	if !l.warm.Load() {
		t.Error("what is not durable is taken to have left the page cache")
	}
	f.on.Store(true)
	if err := st.Flush(); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v", err)
	}
	f.on.Store(false)
	s.write(t, l, 1)
	must(t, st.Flush())
	read("cached", 1<<20, 1<<20, false)
	cool(t, l)
	read("dropped again", 1<<20, 1<<20, true)
	must(t, l.Close())
	must(t, st.Close())
}

// faultyWatched is watched, but that syncs fail as faulty says.
type faultyWatched struct {
	*watched
	f faulty
}

func (d *faultyWatched) Open(name string, flag int) (files.File, error) {
	f, err := d.watched.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return faultyFile{f, d.f, name}, nil
}

// TestDirectFallsBack: whatever goes wrong with O_DIRECT, the read is right.
func TestDirectFallsBack(t *testing.T) {
	s := newLargeSample(3, 10)
	half := func(p []byte) (int, error) {
		clear(p)
		return len(p) / 2, unix.EINVAL
	}
	for name, c := range map[string]struct {
		d            *watched
		opens, reads int64 // in three reads
	}{
		"refused at open":           {&watched{open: unix.EINVAL}, 1, 0},
		"not supported":             {&watched{open: unix.EOPNOTSUPP}, 1, 0},
		"too many open files":       {&watched{open: unix.EMFILE}, 3, 0},
		"refused at read":           {&watched{read: func([]byte) (int, error) { return 0, unix.EINVAL }}, 1, 1},
		"disk error":                {&watched{read: func([]byte) (int, error) { return 0, unix.EIO }}, 1, 3},
		"short":                     {&watched{read: half}, 1, 3},
		"buffer never aligned":      {&watched{memory: 1 << 30, unit: 512}, 1, 0},
		"nothing left when aligned": {&watched{memory: 512, unit: 1 << 30}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			st, err := OpenOn(t.TempDir(), c.d)
			must(t, err)
			l := s.mustCreate(t, st, Complete)
			must(t, st.Flush())
			for range 3 {
				cool(t, l)
				p := alignedBuffer(512<<10, 0)
				if n, err := l.readAt(p, 4096); n != len(p) || !bytes.Equal(p, s.device[4096:][:n]) {
					t.Errorf("read %d, %v, or wrong bytes", n, err)
				}
				if !l.warm.Load() {
					t.Error("what was read through the page cache is never dropped from it")
				}
			}
			if o, r := c.d.opens.Load(), c.d.reads.Load(); o != c.opens || r != c.reads {
				t.Errorf("%d opens and %d reads with O_DIRECT, want %d and %d", o, r, c.opens, c.reads)
			}
			c.d.read = nil
			must(t, l.VerifyWhole(t.Context()))
			must(t, l.Close())
			must(t, st.Close())
		})
	}
}

// TestDirectOnTmpfs reads a store in a file system that has nothing but a page cache:
// up to Linux 6.5 it refuses O_DIRECT.
func TestDirectOnTmpfs(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "mica-store-")
	must(t, err)
	defer os.RemoveAll(dir)
	st := open(t, dir)
	s := newLargeSample(4, 10)
	l := s.mustCreate(t, st, Complete)
	must(t, st.Flush())
	for range 2 {
		cool(t, l)
		p := alignedBuffer(1<<20, 0)
		if n, err := l.readAt(p, 512); n != len(p) || !bytes.Equal(p, s.device[512:][:n]) {
			t.Errorf("read %d, %v, or wrong bytes", n, err)
		}
	}
	must(t, l.VerifyWhole(t.Context()))
	must(t, l.Close())
	must(t, st.Close())
}

// TestPageCache: after 64 MiB were read in large reads, less than a tenth of the device stays in
// the page cache, be it that they came from disk or had just been written.
func TestPageCache(t *testing.T) {
	const size, spanSize = 64 << 20, 1 << 20
	s := &sample{name: digest.FromString("y")}
	for off := int64(0); off <= size; off += spanSize {
		s.starts = append(s.starts, off)
	}
	s.device = bytes.Repeat(randomBytes(rand.New(rand.NewPCG(1, 1)), spanSize), size/spanSize)
	st := open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, s.all()...)
	must(t, st.Flush())
	for _, from := range []string{"the fill", "disk"} {
		p := alignedBuffer(spanSize, 0)
		for off := int64(512); off+spanSize <= size; off += spanSize {
			if n, err := l.readAt(p, off); n != len(p) || !bytes.Equal(p, s.device[off:][:n]) {
				t.Fatalf("read %d, %v, or wrong bytes", n, err)
			}
		}
		if from == "the fill" {
			cool(t, l)
		}
		if left := residentBytes(t, l.DevicePath()); left >= size/10 {
			t.Errorf("read from %s: %d MiB of %d stay in the page cache", from, left>>20, size>>20)
		}
	}
	must(t, l.Close())
	must(t, st.Close())
}

// TestKeepFor: what was written leaves the page cache between once and twice keepFor later, and not
// before.
func TestKeepFor(t *testing.T) {
	d := &watched{}
	dir := t.TempDir()
	s := newLargeSample(5, 100)
	synctest.Test(t, func(t *testing.T) {
		st, err := OpenOn(dir, d)
		must(t, err)
		l := s.mustCreate(t, st, Lazy)
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { must(t, st.Run(ctx)) })
		time.Sleep(keepFor / 2)
		s.write(t, l, s.all()...)
		time.Sleep(flushDelay + keepFor)
		synctest.Wait()
		if n := d.dropped.Load(); n != 0 {
			t.Errorf("%d bytes were dropped within %s", n, keepFor)
		}
		time.Sleep(keepFor)
		synctest.Wait()
		if n := d.dropped.Load(); n != l.Size() {
			t.Errorf("%d bytes of %d were dropped after twice %s", n, l.Size(), keepFor)
		}
		if len(st.warm) > 0 {
			t.Error("a layer that has no pages is still looked after")
		}
		cancel()
		run.Wait()
		must(t, l.Close())
		must(t, st.Close())
	})
}

// TestDirectHoldsNoFile: a layer has its device open twice after a large read, and not at all after
// Close; one that was removed opens no other's.
func TestDirectHoldsNoFile(t *testing.T) {
	dir := t.TempDir()
	st := open(t, dir)
	s := newLargeSample(6, 3)
	openDevices := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, dir) && filepath.Base(to) == deviceName {
				n++
			}
		}
		return n
	}
	l := s.mustCreate(t, st, Complete)
	must(t, l.Close())
	l = s.layer(t, st)
	if n := openDevices(); n != 0 {
		t.Errorf("%d files are open for an idle layer", n)
	}
	p := alignedBuffer(directFrom, 0)
	_, err := l.readAt(p, 0)
	must(t, err)
	if n := openDevices(); n != 1 {
		t.Errorf("%d files are open after a direct read", n)
	}
	_, err = l.readAt(p[:10], 0)
	must(t, err)
	if n := openDevices(); n != 2 {
		t.Errorf("%d files are open after a direct and a small read", n)
	}
	must(t, l.Close())
	if n := openDevices(); n != 0 {
		t.Errorf("%d files are open after Close", n)
	}
	l = s.layer(t, st)
	must(t, st.Remove(s.name))
	other := s.mustCreate(t, st, Complete)
	if _, err := l.readAt(p, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read of a removed layer: %v", err)
	}
	must(t, l.Close())
	must(t, other.Close())
	must(t, st.Close())
}
