package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// A power cut is simulated in three steps: recorder is a disk that writes down
// every operation; recording.cut makes, from the operations up to any moment, a
// folder that a disk could hold after a power cut at that moment; and the real store is
// opened on that.
//
// What was synced is there. Of what was not, any part may be: of a write any of
// its sectors, of names any change that its folder was not synced after.

// sector is how much of a write a simulated disk writes at once: less than a real
// one, so that small writes tear as well.
const sector = 32

type opKind uint8

const (
	opCreate opKind = iota // a name for a new file
	opWrite
	opTruncate
	opSync
	opMkdir
	opRename
	opRemove
	opSyncDir
	opPromise // the store said that spans are durable
)

type op struct {
	kind opKind
	path string // relative to the root
	to   string
	file int // which file, numbered by creation
	off  int64
	data []byte
	keep func(*Store) error // opPromise: what must hold from now on
}

// recorder is a disk below root that writes down what is done to it.
type recorder struct {
	root string
	// drop makes the disk forget to note a sync of a file: a store that
	// forgets to sync it.
	drop func(path string) bool

	mu    sync.Mutex
	files map[string]int // by path
	next  int
	ops   []op
}

func newRecorder(root string) *recorder {
	return &recorder{root: root, files: map[string]int{}}
}

func (r *recorder) rel(path string) string { return strings.TrimPrefix(path, r.root+"/") }

func (r *recorder) note(o op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

func (r *recorder) Open(name string, flag int) (files.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, err := files.OS{}.Open(name, flag)
	if err != nil {
		return nil, err
	}
	path := r.rel(name)
	id, ok := r.files[path]
	if !ok {
		id = r.next
		r.next++
		r.files[path] = id
		r.ops = append(r.ops, op{kind: opCreate, path: path, file: id})
	} else if flag&os.O_TRUNC != 0 {
		r.ops = append(r.ops, op{kind: opTruncate, file: id})
	}
	return &recordedFile{f, r, id, path}, nil
}

func (r *recorder) Mkdir(name string) error {
	r.note(op{kind: opMkdir, path: r.rel(name)})
	return files.OS{}.Mkdir(name)
}

func (r *recorder) Rename(from, to string) error {
	if err := (files.OS{}).Rename(from, to); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	from, to = r.rel(from), r.rel(to)
	renameAll(r.files, from, to)
	r.ops = append(r.ops, op{kind: opRename, path: from, to: to})
	return nil
}

func (r *recorder) RemoveAll(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	removeAll(r.files, r.rel(name))
	r.ops = append(r.ops, op{kind: opRemove, path: r.rel(name)})
	return files.OS{}.RemoveAll(name)
}

func (r *recorder) SyncDir(name string) error {
	r.note(op{kind: opSyncDir, path: r.rel(name)})
	return nil
}

type recordedFile struct {
	files.File
	r    *recorder
	id   int
	path string
}

func (f *recordedFile) WriteAt(p []byte, off int64) (int, error) {
	f.r.note(op{kind: opWrite, file: f.id, off: off, data: slices.Clone(p)})
	return f.File.WriteAt(p, off)
}

func (f *recordedFile) Truncate(n int64) error {
	f.r.note(op{kind: opTruncate, file: f.id, off: n})
	return f.File.Truncate(n)
}

// PunchHole is, for whoever reads, a write of zeros.
func (f *recordedFile) PunchHole(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	f.r.note(op{kind: opWrite, file: f.id, off: off, data: make([]byte, min(n, size-off))})
	return f.File.PunchHole(off, n)
}

// Sync need not wait for the real disk.
func (f *recordedFile) Sync() error {
	if f.r.drop == nil || !f.r.drop(f.path) {
		f.r.note(op{kind: opSync, file: f.id})
	}
	return nil
}

func renameAll[V any](m map[string]V, from, to string) {
	for p, v := range maps.Clone(m) {
		if p == from || strings.HasPrefix(p, from+"/") {
			delete(m, p)
			m[to+strings.TrimPrefix(p, from)] = v
		}
	}
}

func removeAll[V any](m map[string]V, path string) {
	maps.DeleteFunc(m, func(p string, _ V) bool { return p == path || strings.HasPrefix(p, path+"/") })
}

// names is a tree of folders (-1) and files.
type names map[string]int

const folder = -1

func (n names) hasParent(path string) bool {
	dir := filepath.Dir(path)
	if dir == "." {
		return true
	}
	v, ok := n[dir]
	return ok && v == folder
}

func (n names) apply(o *op) {
	switch o.kind {
	case opCreate:
		if n.hasParent(o.path) {
			n[o.path] = o.file
		}
	case opMkdir:
		path := ""
		for part := range strings.SplitSeq(o.path, "/") {
			path = filepath.Join(path, part)
			if _, ok := n[path]; !ok {
				n[path] = folder
			}
		}
	case opRename:
		if _, ok := n[o.path]; ok && n.hasParent(o.to) {
			removeAll(n, o.to)
			renameAll(n, o.path, o.to)
		}
	}
}

// durableNames says which of ops changed names durably: the folder was synced
// later, or for a rename either folder, as journals have it. A durable rename
// takes along what it renames, synced or not.
func durableNames(ops []op) map[int]bool {
	synced := map[string]int{} // by folder: its last sync
	for k, o := range ops {
		if o.kind == opSyncDir {
			synced[o.path] = k
		}
	}
	durable := map[int]bool{}
	moved := map[string]bool{}
	for k := len(ops) - 1; k >= 0; k-- {
		o := &ops[k]
		switch o.kind {
		case opRename:
			durable[k] = k < max(synced[filepath.Dir(o.to)], synced[filepath.Dir(o.path)])
			moved[o.path] = moved[o.path] || durable[k]
		case opCreate, opMkdir, opRemove:
			durable[k] = k < synced[filepath.Dir(o.path)] || moved[o.path] || !strings.Contains(o.path, "/") && o.kind == opMkdir
		}
	}
	return durable
}

// cut makes below dir what a disk could hold after ops.
func cut(t *testing.T, ops []op, dir string, r *rand.Rand) {
	t.Helper()
	named := durableNames(ops)
	fsynced := map[int]int{} // by file: its last sync
	for k, o := range ops {
		if o.kind == opSync {
			fsynced[o.file] = k
		}
	}
	luck := r.IntN(4) // how much of what is not synced survives: nothing, some, all
	survives := func() bool { return luck == 3 || luck > 0 && r.IntN(2) == 0 }
	tree := names{}
	lost := map[string]string{} // renames that did not survive: new name to old
	content := map[int][]byte{}
	resize := func(file int, n int64) {
		b := content[file]
		content[file] = append(b[:min(int64(len(b)), n)], make([]byte, max(n-int64(len(b)), 0))...)
	}
	for k := range ops {
		o := &ops[k]
		durable := false
		if last, ok := fsynced[o.file]; ok {
			durable = k < last
		}
		switch o.kind {
		case opWrite:
			end := o.off + int64(len(o.data))
			for at := o.off; at < end; {
				next := min(end, (at/sector+1)*sector)
				if durable || survives() {
					if int64(len(content[o.file])) < next {
						resize(o.file, next)
					}
					copy(content[o.file][at:next], o.data[at-o.off:next-o.off])
				}
				at = next
			}
		case opTruncate:
			if durable || survives() {
				resize(o.file, o.off)
			}
		case opRename:
			if named[k] || survives() {
				tree.apply(o)
			} else {
				lost[o.to] = o.path
			}
		case opRemove:
			path := o.path
			if old, ok := lost[path]; ok {
				path = old
			}
			// What is in a folder goes first, in any order.
			maps.DeleteFunc(tree, func(p string, _ int) bool {
				return strings.HasPrefix(p, path+"/") && (named[k] || survives())
			})
			if named[k] || survives() {
				removeAll(tree, path)
			}
		case opCreate, opMkdir:
			if named[k] || survives() {
				tree.apply(o)
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		name := filepath.Join(dir, p)
		if tree[p] == folder {
			must(t, os.MkdirAll(name, 0o700))
			continue
		}
		must(t, os.WriteFile(name, content[tree[p]], 0o600))
	}
}

// script is what is done to the recorded store: all that a node does to layers.
// After each promise of durability it notes what must still hold later.
func script(rec *recorder, a, b *sample) error {
	r := rand.New(rand.NewPCG(9, 9))
	st, err := OpenOn(rec.root, rec)
	if err != nil {
		return err
	}
	has := func(s *sample, spans []int, state State) func(*Store) error {
		spans = slices.Clone(spans)
		return func(st *Store) error {
			l, err := s.open(st)
			if err != nil {
				return err
			}
			defer l.Close()
			for _, i := range spans {
				if !l.Present(i) {
					return fmt.Errorf("span %d was durable and is missing", i)
				}
			}
			if got := l.Record().State; got < state {
				return fmt.Errorf("layer was durably %s and is %s", state, got)
			}
			return nil
		}
	}
	promise := func(key string, keep func(*Store) error) {
		rec.note(op{kind: opPromise, path: key, keep: keep})
	}
	// A lazy layer: spans come, the store flushes now and then, and is restarted.
	l, err := a.create(st, Lazy)
	if err != nil {
		return err
	}
	promise("a", has(a, nil, Lazy))
	var done []int
	for n, i := range r.Perm(a.spans()) {
		if err := l.WriteSpan(i, a.span(i)); err != nil {
			return err
		}
		done = append(done, i)
		switch n % 7 {
		case 3:
			if err := st.Flush(); err != nil {
				return err
			}
			promise("a", has(a, done, Lazy))
		case 5:
			if err := l.AddRef(fmt.Sprint("registry.test/app:", n)); err != nil {
				return err
			}
		case 6:
			if err := errors.Join(l.Close(), st.Close()); err != nil {
				return err
			}
			promise("a", has(a, done, Lazy))
			if st, err = OpenOn(rec.root, rec); err != nil {
				return err
			}
			if l, err = a.open(st); err != nil {
				return err
			}
		}
	}
	// Spans go, and some come back; of those that go nothing is promised.
	promise("a", nil)
	for n := range 6 {
		gone := done[n*5 : n*5+5]
		if _, err := l.Evict(gone); err != nil {
			return err
		}
		for _, i := range gone[:2] {
			if err := l.WriteSpan(i, a.span(i)); err != nil {
				return err
			}
		}
		if n%2 == 0 {
			if err := st.Flush(); err != nil {
				return err
			}
			promise("a", has(a, gone[:2], Lazy))
			promise("a", nil)
		}
	}
	// A complete layer is lazy again when spans of it go.
	for _, i := range done {
		if !l.Present(i) {
			if err := l.WriteSpan(i, a.span(i)); err != nil {
				return err
			}
		}
	}
	if err := l.Mark(Complete); err != nil {
		return err
	}
	promise("a", has(a, done, Complete))
	promise("a", nil)
	if _, err := l.Evict(done[:7]); err != nil {
		return err
	}
	promise("a", has(a, done[7:], Lazy))
	for _, i := range done[:7] {
		if err := l.WriteSpan(i, a.span(i)); err != nil {
			return err
		}
	}
	if err := l.Mark(Verified); err != nil {
		return err
	}
	promise("a", has(a, done, Verified))
	// It goes as a whole, and comes back.
	promise("a", nil)
	if err := l.Empty(); err != nil {
		return err
	}
	for _, i := range done {
		if err := l.WriteSpan(i, a.span(i)); err != nil {
			return err
		}
	}
	if err := l.Mark(Verified); err != nil {
		return err
	}
	promise("a", has(a, done, Verified))
	// A layer that comes whole, goes, and comes back lazily.
	m, err := b.create(st, Verified)
	if err != nil {
		return err
	}
	promise("b", has(b, nil, Lazy))
	if err := st.Flush(); err != nil {
		return err
	}
	promise("b", has(b, b.all(), Verified))
	promise("b", nil)
	if err := errors.Join(m.Close(), st.Remove(b.name)); err != nil {
		return err
	}
	if m, err = b.create(st, Lazy); err != nil {
		return err
	}
	for i := range 5 {
		if err := m.WriteSpan(i, b.span(i)); err != nil {
			return err
		}
	}
	if err := st.Flush(); err != nil {
		return err
	}
	promise("b", has(b, []int{0, 1, 2, 3, 4}, Lazy))
	// The device loses its end, which the next start notices.
	path := m.DevicePath()
	if err := errors.Join(m.Close(), l.Close(), st.Close()); err != nil {
		return err
	}
	promise("b", nil)
	f, err := rec.Open(path, os.O_RDWR)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(100), f.Sync(), f.Close()); err != nil {
		return err
	}
	if st, err = OpenOn(rec.root, rec); err != nil {
		return err
	}
	if m, err = b.open(st); err != nil {
		return err
	}
	if err := m.WriteSpan(b.spans()-1, b.span(b.spans()-1)); err != nil {
		return err
	}
	return errors.Join(m.Close(), st.Close())
}

// survive opens the store below dir and says what is wrong with it.
func survive(dir string, promises map[string]func(*Store) error, samples ...*sample) error {
	st, err := OpenOn(dir, files.OS{})
	if err != nil {
		return err
	}
	defer st.Close()
	for _, s := range samples {
		l, err := s.open(st)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = s.check(l)
		if b, e := os.ReadFile(l.IndexPath()); err == nil && string(b) != string(s.index()) {
			err = fmt.Errorf("index is %q, %w", b, e)
		}
		if l.Close(); err != nil {
			return err
		}
	}
	for _, keep := range promises {
		if err := keep(st); err != nil {
			return err
		}
	}
	return nil
}

// cutEverywhere cuts the power after each operation, trials times, and returns
// how many cuts there were and what went wrong.
func cutEverywhere(t *testing.T, drop func(string) bool, trials int) (cuts int, wrong []error) {
	t.Helper()
	old := slog.SetLogLoggerLevel(slog.LevelError)
	defer slog.SetLogLoggerLevel(old)
	a, b := newSample(11, 40), newSample(12, 20)
	rec := newRecorder(t.TempDir())
	rec.drop = drop
	must(t, script(rec, a, b))
	r := rand.New(rand.NewPCG(5, 5))
	base := t.TempDir()
	promises := map[string]func(*Store) error{}
	for k := range rec.ops {
		if o := &rec.ops[k]; o.kind == opPromise {
			promises[o.path] = o.keep
			if o.keep == nil {
				delete(promises, o.path)
			}
			continue
		}
		for range trials {
			dir := filepath.Join(base, fmt.Sprint(cuts))
			cut(t, rec.ops[:k+1], dir, r)
			if err := survive(dir, promises, a, b); err != nil {
				wrong = append(wrong, fmt.Errorf("cut after operation %d of %d: %w", k+1, len(rec.ops), err))
			}
			cuts++
			must(t, os.RemoveAll(dir))
		}
	}
	return cuts, wrong
}

// TestPowerCut: nothing is present that is not whole, and what was promised is
// there, wherever the power goes.
func TestPowerCut(t *testing.T) {
	cuts, wrong := cutEverywhere(t, nil, 5)
	if cuts < 1000 {
		t.Errorf("only %d cuts", cuts)
	}
	for _, err := range wrong[:min(len(wrong), 5)] {
		t.Error(err)
	}
}

// TestPowerCutNotices makes sure that TestPowerCut would see a missing sync.
func TestPowerCutNotices(t *testing.T) {
	for _, name := range []string{deviceName, presentName, indexName, recordName} {
		_, wrong := cutEverywhere(t, func(path string) bool { return strings.HasPrefix(filepath.Base(path), name) }, 2)
		if len(wrong) == 0 {
			t.Errorf("a store that never syncs %s goes unnoticed", name)
		}
	}
}
