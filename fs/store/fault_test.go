package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// faulty is a disk whose operations fail when fault says so. The operations are
// "open", "write", "sync", "rename" and "syncdir".
type faulty struct {
	files.OS
	fault func(op, name string) error
}

func (d faulty) Open(name string, flag int) (files.File, error) {
	if err := d.fault("open", name); err != nil {
		return nil, err
	}
	f, err := d.OS.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return faultyFile{f, d, name}, nil
}

func (d faulty) Rename(from, to string) error {
	if err := d.fault("rename", to); err != nil {
		return err
	}
	return d.OS.Rename(from, to)
}

func (d faulty) SyncDir(name string) error {
	if err := d.fault("syncdir", name); err != nil {
		return err
	}
	return d.OS.SyncDir(name)
}

type faultyFile struct {
	files.File
	d    faulty
	name string
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.fault("write", f.name); err != nil {
		// As a full disk does: some of it is written.
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, err
	}
	return f.File.WriteAt(p, off)
}

func (f faultyFile) Sync() error {
	if err := f.d.fault("sync", f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f faultyFile) Seal() error {
	if err := f.d.fault("seal", f.name); err != nil {
		return err
	}
	return f.File.Seal()
}

// failing fails one operation on files of one name while on is set.
type failing struct {
	on   atomic.Bool
	op   string
	base string
	err  error
	seen func() // called before an operation fails; may be nil
}

func (f *failing) fault(op, name string) error {
	if f.on.Load() && op == f.op && filepath.Base(name) == f.base {
		if f.seen != nil {
			f.seen()
		}
		return f.err
	}
	return nil
}

func openFaulty(t *testing.T, f *failing) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	st, err := OpenOn(dir, faulty{fault: f.fault})
	must(t, err)
	return st, dir
}

func TestDiskFull(t *testing.T) {
	f := &failing{op: "write", base: deviceName, err: unix.ENOSPC}
	st, dir := openFaulty(t, f)
	s := newSample(1, 10)
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, 1)
	f.on.Store(true)
	if err := l.WriteSpan(2, s.span(2)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full disk: %v", err)
	}
	s.mustHave(t, l, 1)
	f.on.Store(false)
	s.write(t, l, 2, 3)
	must(t, l.Close())
	must(t, st.Close())
	st = open(t, dir)
	l = s.layer(t, st)
	s.mustHave(t, l, 1, 2, 3)
	must(t, l.Close())
	must(t, st.Close())
}

// TestRelieved: a layer on its way waits for room, and comes whole, as long as something goes.
func TestRelieved(t *testing.T) {
	for _, base := range []string{indexName, deviceName, recordName} {
		f := &failing{op: "write", base: base, err: unix.ENOSPC}
		st, dir := openFaulty(t, f)
		full, goes := 0, false
		st.OnFull(func(err error) bool {
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("room is asked for after %v", err)
			}
			full++
			f.on.Store(full < 3)
			return goes
		})
		s := newSample(1, 10)
		f.on.Store(true)
		if _, err := s.create(st, Complete); !errors.Is(err, unix.ENOSPC) || full != 1 {
			t.Errorf("%s, nothing goes: asked %d times, %v", base, full, err)
		}
		assertEmpty(t, filepath.Join(dir, tmpName))
		goes, full = true, 0
		l := s.mustCreate(t, st, Complete)
		if full != 3 {
			t.Errorf("%s: asked %d times for room", base, full)
		}
		s.mustHave(t, l, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		must(t, l.Close())
		must(t, st.Close())
	}
}

// TestFailedSync: after the kernel says that it could not write the device
// back, no span written since the last good sync is trusted.
func TestFailedSync(t *testing.T) {
	f := &failing{op: "sync", base: deviceName, err: unix.EIO}
	st, dir := openFaulty(t, f)
	s := newSample(1, 10)
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, 1, 2)
	must(t, st.Flush())
	s.write(t, l, 3)
	f.on.Store(true)
	if err := st.Flush(); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v", err)
	}
	s.mustHave(t, l, 1, 2)
	s.write(t, l, s.all()...)
	if err := l.Mark(Verified); !errors.Is(err, unix.EIO) {
		t.Errorf("mark: %v", err)
	}
	s.mustHave(t, l, 1, 2)
	if l.Record().State != Lazy {
		t.Errorf("state is %s", l.Record().State)
	}
	f.on.Store(false)
	s.write(t, l, 5)
	must(t, l.Close())
	must(t, st.Close())
	st = open(t, dir)
	l = s.layer(t, st)
	s.mustHave(t, l, 1, 2, 5)
	must(t, l.Close())
	must(t, st.Close())
}

// TestDoubtAfterFault: after an error of the disk, of one layer, nothing that this process wrote or
// compared is sure, of any layer, and nothing becomes so for a while. A disk that is full is no
// disk that fails.
func TestDoubtAfterFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{op: "write", base: deviceName, err: unix.ENOSPC}
		st, _ := openFaulty(t, f)
		a, b := newSample(1, 10), newSample(2, 10)
		la, lb := a.mustCreate(t, st, Lazy), b.mustCreate(t, st, Lazy)
		a.write(t, la, 1)
		b.write(t, lb, 1)
		f.on.Store(true)
		_ = la.WriteSpan(2, a.span(2))
		if !la.isSure(1) || !lb.isSure(1) {
			t.Error("a full disk makes spans doubtful")
		}
		f.err = unix.EIO
		gone := lb.evictions.Load()
		_ = la.WriteSpan(2, a.span(2))
		f.on.Store(false)
		if lb.unchanged() || lb.evictions.Load() == gone {
			t.Error("a reader of another layer is not told")
		}
		b.write(t, lb, 2)
		lb.believe(1, lb.evictions.Load())
		if la.isSure(1) || lb.isSure(1) || lb.isSure(2) || !lb.Present(1) {
			t.Error("spans are believed after an error of the disk")
		}
		time.Sleep(faultTime)
		lb.believe(1, lb.evictions.Load())
		b.write(t, lb, 3)
		if la.isSure(1) || !lb.isSure(1) || lb.isSure(2) || !lb.isSure(3) {
			t.Error("later, what was compared and written since is sure, and nothing else")
		}
		must(t, la.Close())
		must(t, lb.Close())
		must(t, st.Close())
	})
}

// TestSyncFailsDuringWrite: a span whose bytes were written before a failing
// sync, but which is published after it, is not published.
func TestSyncFailsDuringWrite(t *testing.T) {
	var l *Layer
	var inWrite atomic.Bool
	fault := func(op, name string) error {
		switch {
		case filepath.Base(name) != deviceName:
		case op == "sync":
			return unix.EIO
		case op == "write" && inWrite.CompareAndSwap(true, false):
			if err := l.flush(); !errors.Is(err, unix.EIO) {
				t.Errorf("flush: %v", err)
			}
		}
		return nil
	}
	st, err := OpenOn(t.TempDir(), faulty{fault: fault})
	must(t, err)
	s := newSample(1, 10)
	l = s.mustCreate(t, st, Lazy)
	s.write(t, l, 1)
	inWrite.Store(true)
	if err := l.WriteSpan(2, s.span(2)); !errors.Is(err, unix.EIO) {
		t.Errorf("write: %v", err)
	}
	s.mustHave(t, l)
	must(t, l.Close())
	must(t, st.Close())
}

// TestMapNotWritten: what is present stays so, and is saved by a later flush.
func TestMapNotWritten(t *testing.T) {
	for _, op := range []string{"open", "write", "sync"} {
		t.Run(op, func(t *testing.T) {
			f := &failing{op: op, base: presentName, err: unix.ENOSPC}
			st, dir := openFaulty(t, f)
			s := newSample(1, 10)
			l := s.mustCreate(t, st, Lazy)
			s.write(t, l, 1)
			must(t, st.Flush())
			s.write(t, l, 2)
			f.on.Store(true)
			if err := st.Flush(); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("flush: %v", err)
			}
			s.mustHave(t, l, 1, 2)
			f.on.Store(false)
			must(t, st.Flush())
			must(t, st.lock.Close()) // the process dies
			s.mustHave(t, l, 1, 2)

			st2 := open(t, dir)
			l2 := s.layer(t, st2)
			s.mustHave(t, l2, 1, 2)
			must(t, l2.Close())
			must(t, st2.Close())
			must(t, l.Close())
		})
	}
}

func TestCreateFails(t *testing.T) {
	for _, c := range []struct{ op, base string }{
		{"write", indexName}, {"sync", indexName}, {"write", recordName}, {"sync", recordName},
		{"open", deviceName}, {"write", deviceName}, {"rename", newSample(1, 1).name.Encoded()},
	} {
		t.Run(c.op+" "+c.base, func(t *testing.T) {
			f := &failing{op: c.op, base: c.base, err: unix.ENOSPC}
			st, dir := openFaulty(t, f)
			s := newSample(1, 300)
			f.on.Store(true)
			if _, err := s.create(st, Verified); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("create: %v", err)
			}
			f.on.Store(false)
			assertEmpty(t, filepath.Join(dir, tmpName))
			l := s.mustCreate(t, st, Verified)
			s.mustHave(t, l, s.all()...)
			must(t, l.Close())
			must(t, st.Close())
		})
	}
}

// TestRun: a flush begins flushDelay after the first span, and sooner when
// there is much to save.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := open(t, t.TempDir())
		s := newSample(1, 10)
		l := s.mustCreate(t, st, Lazy)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- st.Run(ctx) }()
		saved := func() string {
			synctest.Wait()
			p, err := loadPresence(st.disk, l.dir+"/"+presentName, l.record.mapping())
			must(t, err)
			if p == nil {
				return "none"
			}
			return fmt.Sprintf("%b", p.bits[0])
		}
		time.Sleep(time.Hour)
		s.write(t, l, 0)
		time.Sleep(flushDelay - time.Second)
		s.write(t, l, 1)
		if got := saved(); got != "none" {
			t.Errorf("saved early: %s", got)
		}
		time.Sleep(time.Second + time.Millisecond)
		if got := saved(); got != "11" {
			t.Errorf("saved after the delay: %s", got)
		}
		s.write(t, l, 2)
		st.changed(l, flushBytes)
		if got := saved(); got != "111" {
			t.Errorf("saved at once when there is much: %s", got)
		}
		// A flush that fails is tried again.
		must(t, os.Rename(l.dir+"/"+presentName, l.dir+"/aside"))
		must(t, os.Mkdir(l.dir+"/"+presentName, 0o700))
		s.write(t, l, 3)
		time.Sleep(2*flushDelay + time.Millisecond)
		must(t, os.Remove(l.dir+"/"+presentName))
		must(t, os.Rename(l.dir+"/aside", l.dir+"/"+presentName))
		time.Sleep(flushDelay + time.Millisecond)
		if got := saved(); got != "1111" {
			t.Errorf("saved once it could be: %s", got)
		}
		cancel()
		must(t, <-ended)
		must(t, l.Close())
		must(t, st.Close())
	})
}

func FuzzPresence(f *testing.F) {
	s := newSample(1, 100)
	rec := s.record(Lazy)
	m := rec.mapping()
	used := presentHeader + 8*words(100)
	f.Add(m.encode(&presence{generation: 3, bytes: 7, bits: []uint64{5, 0}})[:used])
	f.Add(m.encode(&presence{generation: 1 << 63, bytes: m.deviceSize, bits: fullBits(100)})[:used])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		// Let the fuzzer behind the length and the checksum.
		b := make([]byte, m.slotSize())
		copy(b, in)
		clear(b[12:16])
		binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, castagnoli))
		p, err := m.decode(b)
		if err != nil {
			return
		}
		q, err := m.decode(m.encode(p))
		if err != nil || q.generation != p.generation || q.bytes != p.bytes || q.bits[0] != p.bits[0] || q.bits[1] != p.bits[1] {
			t.Errorf("%+v became %+v, %v", p, q, err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	s := newSample(1, 100)
	for _, state := range []State{Lazy, Complete, Verified} {
		rec := s.record(state)
		b, err := encodeRecord(&rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := decodeRecord(b, s.name)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			return
		}
		if rec.Layer != s.name || rec.Spans < 0 || rec.Spans > maxSpans || rec.DeviceSize < int64(rec.Spans) || rec.State > Verified {
			t.Errorf("accepted %+v", rec)
		}
		if b, err = encodeRecord(&rec); err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRecord(b, s.name); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkCreateLazy(b *testing.B) {
	st, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		l, err := newSample(uint64(i), 3).create(st, Lazy)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		b.Fatal(err)
	}
}

// TestSealAgain: a seal that the disk has refused is tried again.
func TestSealAgain(t *testing.T) {
	f := &failing{op: "seal", base: deviceName, err: unix.EIO}
	st, _ := openFaulty(t, f)
	s := newSample(1, 10)
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, s.all()...)
	f.on.Store(true)
	if err := l.Mark(Verified); !errors.Is(err, unix.EIO) || l.Sealed() {
		t.Errorf("mark: %v, sealed %v", err, l.Sealed())
	}
	f.on.Store(false)
	must(t, l.Mark(Verified))
	if _, sealed, err := l.deviceLength(); !sealed || err != nil {
		t.Errorf("the file is sealed: %v, %v", sealed, err)
	}
	must(t, l.Close())
	must(t, st.Close())
}

// TestMarkAfterDisk: a layer has a state in memory when it has it on disk, and not before.
func TestMarkAfterDisk(t *testing.T) {
	f := &failing{op: "rename", base: recordName, err: unix.EIO}
	st, _ := openFaulty(t, f)
	s := newSample(1, 10)
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, s.all()...)
	f.on.Store(true)
	before := Verified
	f.seen = func() { before = l.Record().State }
	if err := l.Mark(Verified); !errors.Is(err, unix.EIO) {
		t.Errorf("mark: %v", err)
	}
	if got := l.Record().State; before != Lazy || got != Lazy {
		t.Errorf("state is %s before the record is on disk, %s after it failed", before, got)
	}
	f.on.Store(false)
	must(t, l.Mark(Verified))
	if got := l.Record().State; got != Verified {
		t.Errorf("state is %s", got)
	}
	must(t, l.Close())
	must(t, st.Close())
}
