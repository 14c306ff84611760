package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
	"github.com/mica-snapshotter/mica/index"
)

// residentEnv makes the test binary print how much of the files that it is
// given the page cache holds: a mount is never touched by the process that serves it.
const residentEnv = "MICA_TEST_RESIDENT"

func TestMain(m *testing.M) {
	if os.Getenv(residentEnv) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	n, err := resident(os.Args[1:])
	fmt.Print(n)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// resident returns how many bytes of the regular files at and below paths the page cache holds.
func resident(paths []string) (total int64, err error) {
	for _, p := range paths {
		err = errors.Join(err, filepath.WalkDir(p, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			var st unix.Cachestat_t
			err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0)
			total += int64(st.Cache) * int64(os.Getpagesize())
			return err
		}))
	}
	return total, err
}

// sample is a layer's bytes, cut into spans that are not aligned to anything.
type sample struct {
	name   digest.Digest
	device []byte
	starts []int64 // of the spans, and the end
}

func newSample(seed uint64, spans int) *sample {
	r := rand.New(rand.NewPCG(seed, 1))
	s := &sample{name: digest.FromString(fmt.Sprint("layer ", seed)), starts: []int64{0}}
	for range spans {
		s.starts = append(s.starts, s.starts[len(s.starts)-1]+1+r.Int64N(3000))
	}
	s.device = make([]byte, s.starts[spans])
	for i := range s.device {
		s.device[i] = byte(1 + r.IntN(255)) // never zero, which is what a hole reads as
	}
	return s
}

func (s *sample) spans() int { return len(s.starts) - 1 }

func (s *sample) span(i int) []byte { return s.device[s.starts[i]:s.starts[i+1]] }

func (s *sample) diffID() digest.Digest { return digest.FromBytes(s.device) }

func (s *sample) record(state State) Record {
	return Record{
		Layer: s.name, DiffID: s.diffID(), MediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
		LayerSize: int64(len(s.device)) / 2, DeviceSize: int64(len(s.device)), Spans: s.spans(),
		State: state, Refs: []string{"registry.test/app:1"},
	}
}

func (s *sample) index() []byte { return []byte("index of " + s.name) }

// table is what the sample's index says of its spans.
func (s *sample) table() (index.Spans, error) {
	t := make(index.Spans, s.spans())
	for i := range t {
		b := s.span(i)
		t[i] = index.Span{Device: s.starts[i], Size: int64(len(b)), Digest: sha256.Sum256(b)}
	}
	return t, nil
}

// open is layer for who checks the error.
func (s *sample) open(st *Store) (*Layer, error) {
	l, err := st.Layer(s.name)
	if err == nil {
		l.Know(s.table, nil, nil)
	}
	return l, err
}

// create puts the sample into the store, in the state that is asked for.
func (s *sample) create(st *Store, state State) (*Layer, error) {
	in, err := st.Create(s.name)
	if err != nil {
		return nil, err
	}
	if _, err := in.Index().Write(s.index()); err != nil {
		return nil, errors.Join(err, in.Abort())
	}
	if state > Lazy {
		for i := range s.spans() {
			if _, err := in.Device().Write(s.span(i)); err != nil {
				return nil, errors.Join(err, in.Abort())
			}
		}
	}
	l, err := in.Commit(s.record(state))
	if err == nil {
		l.Know(s.table, nil, nil)
	}
	return l, err
}

func (s *sample) mustCreate(t *testing.T, st *Store, state State) *Layer {
	t.Helper()
	l, err := s.create(st, state)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (s *sample) write(t *testing.T, l *Layer, spans ...int) {
	t.Helper()
	for _, i := range spans {
		if err := l.WriteSpan(i, s.span(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// check compares what the layer calls present with the sample.
func (s *sample) check(l *Layer) error {
	if size, _, err := l.deviceLength(); err != nil {
		return err
	} else if size != l.Size() {
		return fmt.Errorf("device of %d bytes, want %d", size, l.Size())
	}
	count, total := 0, int64(0)
	for i := range s.spans() {
		if !l.Present(i) {
			continue
		}
		count++
		got := make([]byte, len(s.span(i)))
		if n, err := l.readAt(got, s.starts[i]); n < len(got) {
			return fmt.Errorf("read span %d: %w", i, err)
		}
		total += int64(len(got))
		if !bytes.Equal(got, s.span(i)) {
			return fmt.Errorf("span %d is present and wrong", i)
		}
	}
	if n, b := l.Count(); n != count || b != total {
		return fmt.Errorf("counts %d spans, %d bytes; are %d, %d", n, b, count, total)
	}
	if l.AllPresent() != (count == s.spans()) {
		return fmt.Errorf("AllPresent is %v with %d of %d spans", l.AllPresent(), count, s.spans())
	}
	if l.Record().State > Lazy && count != s.spans() {
		return fmt.Errorf("%s with %d of %d spans", l.Record().State, count, s.spans())
	}
	return nil
}

func (s *sample) mustHave(t *testing.T, l *Layer, spans ...int) {
	t.Helper()
	if err := s.check(l); err != nil {
		t.Fatal(err)
	}
	want := map[int]bool{}
	for _, i := range spans {
		want[i] = true
	}
	for i := range s.spans() {
		if l.Present(i) != want[i] {
			t.Errorf("span %d present: %v, want %v", i, l.Present(i), want[i])
		}
	}
}

func (s *sample) all() []int {
	all := make([]int, s.spans())
	for i := range all {
		all[i] = i
	}
	return all
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	st, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// layer opens the sample's layer, which the store has.
func (s *sample) layer(t *testing.T, st *Store) *Layer {
	t.Helper()
	l, err := s.open(st)
	must(t, err)
	return l
}

func TestPresenceSurvivesReopening(t *testing.T) {
	dir, s := t.TempDir(), newSample(1, 130)
	st := open(t, dir)
	l := s.mustCreate(t, st, Lazy)
	s.mustHave(t, l)
	s.write(t, l, 0, 63, 64, 129)
	s.mustHave(t, l, 0, 63, 64, 129)
	must(t, l.Close())
	must(t, st.Close())

	st = open(t, dir)
	l = s.layer(t, st)
	s.mustHave(t, l, 0, 63, 64, 129)
	s.write(t, l, s.all()...)
	if l.Record().State != Lazy {
		t.Errorf("state is %s before Mark", l.Record().State)
	}
	must(t, l.VerifyWhole(t.Context()))
	must(t, l.Mark(Verified))
	must(t, l.Close())
	must(t, st.Close())

	st = open(t, dir)
	l = s.layer(t, st)
	s.mustHave(t, l, s.all()...)
	if l.Record().State != Verified {
		t.Errorf("state is %s after Mark", l.Record().State)
	}
	must(t, l.Close())
	must(t, st.Close())
}

func TestMarkNeedsAllSpans(t *testing.T) {
	s, st := newSample(1, 5), open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, 0, 1, 2, 3)
	if err := l.Mark(Complete); err == nil {
		t.Error("a layer with a missing span was marked complete")
	}
	if l.Record().State != Lazy {
		t.Errorf("state is %s", l.Record().State)
	}
	must(t, l.Close())
	must(t, st.Close())
}

func TestWriteSpanBounds(t *testing.T) {
	s, st := newSample(1, 5), open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	n := len(s.span(0))
	for _, c := range []struct{ span, n int }{{-1, n}, {5, n}, {0, n - 1}, {0, n + 1}, {0, 0}} {
		if err := l.WriteSpan(c.span, make([]byte, c.n)); err == nil {
			t.Errorf("WriteSpan(%d, %d bytes) was accepted", c.span, c.n)
		}
	}
	if l.Present(-1) || l.Present(5) {
		t.Error("spans that there are not are present")
	}
	s.mustHave(t, l)
	must(t, l.Close())
	must(t, st.Close())
}

func TestWholeLayer(t *testing.T) {
	dir, s := t.TempDir(), newSample(2, 40)
	st := open(t, dir)
	in, err := st.Create(s.name)
	must(t, err)
	_, err = in.Index().Write(s.index())
	must(t, err)
	r, n, err := in.IndexReader()
	must(t, err)
	if got, err := io.ReadAll(io.NewSectionReader(r, 0, n)); err != nil || !bytes.Equal(got, s.index()) {
		t.Errorf("index reads back as %q, %v", got, err)
	}
	_, err = io.WriteString(in.Windows(), "windows")
	must(t, err)
	_, err = in.Device().Write(s.device)
	must(t, err)
	l, err := in.Commit(s.record(Verified))
	must(t, err)
	must(t, in.Abort()) // does nothing
	s.mustHave(t, l, s.all()...)
	must(t, l.VerifyWhole(t.Context()))
	w, err := l.Windows()
	must(t, err)
	if b, err := io.ReadAll(io.NewSectionReader(w, 0, 100)); err != nil || string(b) != "windows" {
		t.Errorf("windows are %q, %v", b, err)
	}
	if b, err := os.ReadFile(l.IndexPath()); err != nil || !bytes.Equal(b, s.index()) {
		t.Errorf("index is %q, %v", b, err)
	}
	if n, err := l.DiskUsage(); err != nil || n < int64(len(s.device)) {
		t.Errorf("disk usage %d, %v for %d bytes", n, err, len(s.device))
	}
	if fi, err := os.Stat(l.DevicePath()); err != nil || fi.Size()%512 != 0 || fi.Size() != l.Size() {
		t.Errorf("device: %v, %v", fi, err)
	}
	// A second one of the same name comes too late.
	if _, err := s.create(st, Lazy); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second commit: %v", err)
	}
	must(t, l.AddRef("registry.test/app:2"))
	must(t, l.Close())
	must(t, st.Close())

	st = open(t, dir)
	l = s.layer(t, st)
	s.mustHave(t, l, s.all()...)
	if rec := l.Record(); rec.State != Verified || len(rec.Refs) != 2 || rec.Refs[1] != "registry.test/app:2" {
		t.Errorf("record is %+v", rec)
	}
	if got, err := st.Layers(); err != nil || len(got) != 1 || got[0] != s.name {
		t.Errorf("layers are %v, %v", got, err)
	}
	must(t, l.Close())
	must(t, st.Close())
	assertEmpty(t, filepath.Join(dir, tmpName))
}

func assertEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%s holds %v, %v", dir, left, err)
	}
}

func TestCommitRefuses(t *testing.T) {
	s := newSample(3, 4)
	for name, c := range map[string]struct {
		fill func(*Incoming) error
		rec  func(*Record)
	}{
		"no index":            {func(*Incoming) error { return nil }, func(*Record) {}},
		"short device":        {func(in *Incoming) error { _, err := in.Device().Write(s.device[1:]); return err }, func(r *Record) { r.State = Complete }},
		"device of a lazy":    {func(in *Incoming) error { _, err := in.Device().Write(s.device); return err }, func(*Record) {}},
		"of another layer":    {nil, func(r *Record) { r.Layer = digest.FromString("x") }},
		"no diffID":           {nil, func(r *Record) { r.DiffID = "" }},
		"no spans":            {nil, func(r *Record) { r.Spans = 0 }},
		"more spans than fit": {nil, func(r *Record) { r.Spans = int(r.DeviceSize) + 1 }},
		"negative size":       {nil, func(r *Record) { r.DeviceSize = -1 }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			st := open(t, dir)
			in, err := st.Create(s.name)
			must(t, err)
			if name != "no index" {
				_, err = in.Index().Write(s.index())
				must(t, err)
			}
			if c.fill != nil {
				must(t, c.fill(in))
			}
			rec := s.record(Lazy)
			c.rec(&rec)
			if _, err := in.Commit(rec); err == nil {
				t.Error("was accepted")
			}
			if _, err := s.open(st); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("layer is there: %v", err)
			}
			assertEmpty(t, filepath.Join(dir, tmpName))
			must(t, st.Close())
		})
	}
}

// TestSpool writes in pieces of all sizes around the buffer's.
func TestSpool(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var want []byte
	f := spool{store: &Store{disk: files.OS{}}, name: filepath.Join(t.TempDir(), "f")}
	for range 40 {
		p := make([]byte, r.IntN(2*spoolBuffer+3))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		if n, err := f.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		want = append(want, p...)
	}
	must(t, f.sync())
	got, err := os.ReadFile(f.name)
	if err != nil || !bytes.Equal(got, want) || f.off != int64(len(want)) {
		t.Errorf("wrote %d bytes, read %d, offset %d, %v", len(want), len(got), f.off, err)
	}
	must(t, f.close())
}

func TestVerifyWhole(t *testing.T) {
	s, st := newSample(4, 300), open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, s.all()...)
	must(t, l.VerifyWhole(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.VerifyWhole(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	must(t, l.WriteSpan(7, bytes.Repeat([]byte{0}, len(s.span(7)))))
	if err := l.VerifyWhole(t.Context()); !errors.Is(err, ErrMismatch) {
		t.Errorf("changed: %v", err)
	}
	must(t, l.Close())
	must(t, st.Close())
}

func TestEmptyLayer(t *testing.T) {
	s := &sample{name: digest.FromString("empty"), starts: []int64{0}}
	st := open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	s.mustHave(t, l)
	must(t, l.VerifyWhole(t.Context()))
	must(t, l.Mark(Verified))
	must(t, l.Close())
	must(t, st.Close())
}

func TestPresentCostsNothing(t *testing.T) {
	s, st := newSample(1, 100), open(t, t.TempDir())
	l := s.mustCreate(t, st, Lazy)
	s.write(t, l, 50)
	p := make([]byte, len(s.span(50)))
	if n := testing.AllocsPerRun(100, func() {
		if !l.Present(50) || l.Present(51) || l.AllPresent() {
			t.Error("presence is wrong")
		}
		if _, err := l.readAt(p, s.starts[50]); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	must(t, l.Close())
	must(t, st.Close())
}
