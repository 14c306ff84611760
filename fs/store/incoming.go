package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// spoolBuffer is how many bytes of a file on its way in are written at once.
const spoolBuffer = 256 << 10

// Incoming is a layer on its way into the store: files in a folder of their own
// that Commit moves to the layer's place. It is for one goroutine, but that its
// writers may each have one of their own. It ends with Commit or Abort; Abort
// after Commit does nothing.
type Incoming struct {
	store   *Store
	digest  digest.Digest
	dir     string
	index   spool
	windows spool
	device  spool
	ended   bool
	space   *space // what dir takes on disk
}

// Create begins a layer. Others may be creating the same one: the first Commit
// wins.
func (s *Store) Create(d digest.Digest) (*Incoming, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("create layer %q: %w", d, err)
	}
	dir := s.tmpDir(incomingPrefix, d)
	if err := s.Relieved(func() error { return s.disk.Mkdir(dir) }); err != nil {
		return nil, fmt.Errorf("create layer %s: %w", d, err)
	}
	in := &Incoming{store: s, digest: d, dir: dir, space: &space{}}
	in.device.zeros = zeros{}
	for name, f := range map[string]*spool{indexName: &in.index, windowsName: &in.windows, deviceName: &in.device} {
		f.store, f.name = s, dir+"/"+name
		f.grown = func(n int64) { s.usage.add(in.space, n) }
	}
	return in, nil
}

// Index is where the index file is written, in order. What has been written can
// be read back before Commit by IndexReader.
func (in *Incoming) Index() io.Writer { return &in.index }

// Windows is where the layer's windows section is written, in order. A layer
// whose windows are fetched by range leaves it alone.
func (in *Incoming) Windows() io.Writer { return &in.windows }

// Device is where the uncompressed tar is written, in order. A lazy layer leaves it
// alone.
func (in *Incoming) Device() io.Writer { return &in.device }

// IndexReader returns what has been written to Index, and its size. It is valid
// until Commit or Abort.
func (in *Incoming) IndexReader() (io.ReaderAt, int64, error) {
	if err := in.index.flush(); err != nil {
		return nil, 0, err
	}
	if in.index.f == nil {
		return nil, 0, &fs.PathError{Op: "read", Path: in.index.name, Err: fs.ErrNotExist}
	}
	return in.index.f, in.index.off, nil
}

// Commit makes the layer appear, and opens it. An error wraps fs.ErrExist if the
// store has the layer already; the caller then opens that one. Whatever the
// error, the draft is gone.
//
// rec.State says what was written: Lazy is a layer without device bytes,
// anything else is one whose device was written whole, and rec.DeviceSize bytes
// long. Index, windows and record are durable when Commit returns. The device's
// bytes follow with the next flush, so that nobody waits for them: after a
// power cut before it the layer is lazy with nothing present.
func (in *Incoming) Commit(rec Record) (*Layer, error) {
	l, err := in.commit(rec)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("commit layer %s: %w", in.digest, err), in.Abort())
	}
	return l, nil
}

func (in *Incoming) commit(rec Record) (*Layer, error) {
	if in.ended {
		return nil, os.ErrClosed
	}
	rec = rec.clone()
	if err := rec.check(in.digest); err != nil {
		return nil, err
	}
	if err := in.finish(&rec); err != nil {
		return nil, err
	}
	s := in.store
	e := s.ref(in.digest)
	e.mu.Lock()
	for e.dead {
		e.mu.Unlock()
		if err := s.unref(in.digest, e); err != nil {
			return nil, err
		}
		e = s.ref(in.digest)
		e.mu.Lock()
	}
	l, err := in.place(e, rec.State)
	e.mu.Unlock()
	if err != nil {
		return nil, errors.Join(err, s.unref(in.digest, e))
	}
	return l, nil
}

// place moves the draft to its place and opens it there. The caller holds e.mu, so that nobody
// removes it meanwhile and puts another one there, which would be taken for what has come.
func (in *Incoming) place(e *entry, state State) (*Layer, error) {
	d, to := in.store.disk, in.store.layerDir(in.digest)
	// A folder of that name has files in it, so the rename cannot replace it.
	if err := d.Rename(in.dir, to); err != nil {
		if _, lerr := os.Lstat(to); lerr == nil {
			return nil, fmt.Errorf("%w: %w", fs.ErrExist, err)
		}
		return nil, err
	}
	in.ended = true
	in.store.usage.end(in.space)
	if err := d.SyncDir(filepath.Dir(to)); err != nil {
		return nil, err
	}
	if e.layer == nil {
		l, err := loadLayer(in.store, e, in.digest)
		if err != nil {
			return nil, err
		}
		e.layer = l
	}
	l := e.layer
	if state == Verified {
		// Somebody may mount it before the record on disk says that it is whole.
		if err := l.seal(); err != nil {
			return nil, err
		}
	}
	if state > Lazy {
		l.arrived(state, in.device.zeros, in.device.tail)
	}
	return l, nil
}

// finish completes the files in the draft's folder and makes durable all but the
// device.
func (in *Incoming) finish(rec *Record) error {
	switch {
	case in.index.off == 0:
		return errors.New("no index was written")
	case rec.State == Lazy && in.device.off > 0:
		return fmt.Errorf("%d device bytes of a lazy layer", in.device.off)
	case rec.State > Lazy && in.device.off != rec.DeviceSize:
		return fmt.Errorf("%d device bytes instead of %d", in.device.off, rec.DeviceSize)
	}
	lazy := *rec
	lazy.State = Lazy
	b, err := encodeRecord(&lazy)
	if err != nil {
		return err
	}
	record := spool{store: in.store, name: in.dir + "/" + recordName}
	if _, err := record.Write(b); err != nil {
		return err
	}
	files := []*spool{&in.index, &in.windows, &record, &in.device}
	for _, f := range files {
		if err := f.flush(); err != nil {
			return errors.Join(err, record.close())
		}
	}
	err = in.makeDurable(&record, rec.DeviceSize)
	for _, f := range files {
		err = errors.Join(err, f.close())
	}
	return err
}

// makeDurable gives the device its length and syncs all else, of which every file has its name.
func (in *Incoming) makeDurable(record *spool, deviceSize int64) error {
	if err := in.device.create(); err != nil {
		return err
	}
	if err := in.device.f.Truncate(roundUp(deviceSize)); err != nil {
		return err
	}
	// At once, so that they can share a commit of the file system's journal.
	var syncs errgroup.Group
	syncs.Go(in.index.sync)
	syncs.Go(in.windows.sync)
	syncs.Go(record.sync)
	syncs.Go(func() error { return in.store.disk.SyncDir(in.dir) })
	return syncs.Wait()
}

// arrived publishes a layer whose device came in whole. For zeros and tail see spool.
func (l *Layer) arrived(state State, zeros zeros, tail bool) {
	l.unchanged() // it is as it was written: from here on it is looked after
	l.reads.touch(0, l.present.n)
	l.mu.Lock()
	l.unsaved = append(l.unsaved, unsaved{-1, 0, l.size, false, tail})
	l.zeros.add(zeros)
	l.present.fill()
	if !l.store.faults.lately() {
		l.own.sure.fill()
	}
	l.bytes = l.size
	l.record.State = max(l.record.State, state)
	l.dirty = true
	l.mu.Unlock()
	l.store.changed(l, l.size)
}

// Abort gives the draft up and removes its files.
func (in *Incoming) Abort() error {
	if in.ended {
		return nil
	}
	in.ended = true
	defer in.store.usage.end(in.space)
	err := errors.Join(in.index.close(), in.windows.close(), in.device.close(), in.store.disk.RemoveAll(in.dir))
	if err != nil {
		return fmt.Errorf("abort layer %s: %w", in.digest, err)
	}
	return nil
}

// spool is a file that is written in order through a buffer and made by the first
// byte.
type spool struct {
	store *Store
	name  string
	f     files.File
	off   int64         // bytes written so far, those in buf included
	buf   *bufio.Writer // into the file; it keeps an error: the file is not what was written then
	done  int64         // bytes that are in the file
	// grown is told of what is written; nil: nobody is.
	grown func(n int64)

	// Of a device's: the sectors of zeros that were written; and whether the last write ended with
	// zeros that are a part of one.
	zeros zeros
	tail  bool
}

// Write implements io.Writer.
func (s *spool) Write(p []byte) (done int, err error) {
	if s.buf == nil {
		s.buf = bufio.NewWriterSize(spooled{s}, spoolBuffer)
	}
	// No more than the buffer takes at a time: so the file is written in whole sectors.
	for part := range slices.Chunk(p, spoolBuffer) {
		n, err := s.buf.Write(part)
		done += n
		s.off += int64(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (s *spool) flush() error {
	if s.buf == nil {
		return nil
	}
	return s.buf.Flush()
}

// spooled is the file of a spool.
type spooled struct{ *spool }

// Write implements io.Writer.
func (s spooled) Write(p []byte) (int, error) {
	var n int
	if err := s.store.Relieved(func() (err error) {
		if err = s.create(); err == nil {
			n, err = s.f.WriteAt(p, s.done) // all of it, also where some lies there
		}
		return err
	}); err != nil {
		return n, err
	}
	if s.zeros != nil {
		s.zeros.add(zerosIn(p, s.done))
		_, s.tail = edges(p, s.done)
	}
	if s.grown != nil {
		s.grown(int64(n))
	}
	s.done += int64(n)
	return n, nil
}

// create makes the file if the first byte has not.
func (s *spool) create() error {
	if s.f != nil {
		return nil
	}
	f, err := s.store.disk.Open(s.name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	s.f = f
	return err
}

// sync makes the content durable; a file that was never written stays away.
func (s *spool) sync() error {
	if err := s.flush(); err != nil || s.f == nil {
		return err
	}
	return s.f.Sync()
}

func (s *spool) close() error {
	s.buf = nil
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}
