package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/pull"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/targz"
)

// stored returns the layer, open, if the store has it, else an error that wraps os.ErrNotExist. ref
// is an image that brings it; "": none.
func (t *Table) stored(d digest.Digest, ref string) (*openLayer, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, errors.New("micad is stopping")
	}
	e := t.entries[d]
	if e == nil {
		e = &tableEntry{}
		e.open = sync.OnceValues(func() (*openLayer, error) {
			defer e.ready.Store(true)
			l, err := t.openStored(d)
			if err == nil {
				l.adoptHeld(t.ctx)
			}
			return l, err
		})
		t.entries[d] = e
	}
	t.mu.Unlock()
	l, err := e.open()
	if err != nil {
		t.mu.Lock()
		if t.entries[d] == e {
			delete(t.entries, d)
		}
		t.mu.Unlock()
		return nil, err
	}
	return l, l.addRef(ref)
}

// openStored opens a layer that the store has; the error wraps os.ErrNotExist otherwise. A damaged
// layer is removed, and then the store has not got it.
func (t *Table) openStored(d digest.Digest) (*openLayer, error) {
	l, err := t.openFolder(d)
	if errors.Is(err, store.ErrDamaged) {
		err = t.removeDamaged(d, err)
		if err == nil {
			l, err = t.openFolder(d) // most often there is none
		}
	}
	if err != nil {
		return nil, err
	}
	l.start()
	return l, nil
}

// removeDamaged removes the folder of a layer of which another look says too that it is damaged.
// (In between it may have gone, and come anew.)
func (t *Table) removeDamaged(d digest.Digest, why error) error {
	t.damage.Lock()
	defer t.damage.Unlock()
	l, err := t.openFolder(d)
	if err == nil {
		return errors.Join(l.file.Close(), l.store.Close())
	}
	if !errors.Is(err, store.ErrDamaged) {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return err
	}
	t.log.Warn("layer on disk is damaged: fetched again", "layer", d, "err", why)
	// The kernel may have mounted the damage; who uses that keeps it.
	if err := errors.Join(t.clearMounts(d), t.store.Remove(d)); err != nil {
		// Not wrapped: os.ErrNotExist would say that the layer is to be brought.
		return errors.New("layer on disk is damaged and cannot be removed: " + err.Error())
	}
	return nil
}

// openFolder opens the files of a layer that the store has.
func (t *Table) openFolder(d digest.Digest) (*openLayer, error) {
	s, err := t.store.Layer(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.IndexPath())
	if err != nil {
		return nil, errors.Join(damaged(err), s.Close())
	}
	l := &openLayer{
		t: t, digest: d, key: mountKey(d), store: s, file: f, opened: time.Now(),
		came: make(chan struct{}, 1), points: map[string]*mountPoint{},
	}
	if err := l.openIndex(); err != nil {
		return nil, errors.Join(damaged(err), f.Close(), s.Close())
	}
	return l, nil
}

// openIndex opens the index file and checks that it belongs to what the record says.
func (l *openLayer) openIndex() error {
	st, err := l.file.Stat()
	if err != nil {
		return err
	}
	if l.index, err = index.Open(l.file, st.Size()); err != nil {
		return err
	}
	h, rec := l.index.Header(), l.store.Record()
	if h.Layer != rec.Layer || h.DiffID != rec.DiffID || h.DeviceSize != rec.DeviceSize {
		return fmt.Errorf("%w: it is of layer %s", index.ErrCorrupt, h.Layer)
	}
	l.marks = sync.OnceValues(l.index.Marks)
	return nil
}

// damaged makes err say that the layer's folder is of no use, unless err comes of a file that is
// there and could not be opened or read just now: for want of descriptors or memory, or for a fault
// of the disk that may pass.
func damaged(err error) error {
	if ofDisk(err) && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", store.ErrDamaged, err)
}

// start makes a layer whose files are open ready to be read, and has its bytes fetched.
func (l *openLayer) start() {
	t, s := l.t, l.store
	rec := s.Record()
	l.origins = source.NewOrigins(t.o.Remote, t.o.ReadDeadline, &t.prefetch, rec.Refs)
	pushed := t.copies.Feed(&rec)
	o := layer.Options{
		Blob:     source.New(l.origins, rec.Layer, rec.LayerSize, 0, rec.LayerSize),
		Unpack:   l.unpack,
		Push:     pushed,
		Budget:   t.budget,
		Deadline: t.o.ReadDeadline,
		Complete: l.lastCame,
		Waited:   func(off, end int64) { t.fetch.Near(l.digest, off, end) },
		Log:      t.log,

		Unreadable: t.cache.Unreadable,
	}
	if w := rec.Windows; w.Blob != "" {
		o.Windows = source.New(l.origins, w.Blob, w.BlobSize, w.Off, l.index.Header().WindowsSize)
	}
	l.proof = proof.New(l, t.o.LocalIndexes, t.log)
	l.data = layer.New(l.index, t.cache.Guard(s, l.fromStart()), o)
	l.origins.Told = l.data.Failed
	pushed.Open(l.data)
	ctx, stop := context.WithCancel(t.ctx)
	l.stop = stop
	t.goes(func(context.Context) { l.tend(ctx) })
	now := l.stage()
	if now == stageLazy {
		if err := s.Hold(); err != nil {
			t.log.Warn("layer's files do not open: what comes of it is not kept until they do",
				"layer", l.digest, "err", err)
		}
		t.fetch.Add(l.digest, l.data)
		l.delay = time.AfterFunc(fillDelay, l.startFill)
		return
	}
	t.fetch.Whole(l.digest)
	if now == stageWhole || now == stageProved {
		l.lastCame() // an earlier run has not come to it
	}
}

// A layer is whole, or not here, whose blob can only be decoded from its beginning: its spans are
// index.FromStart. It is served as any other, goes from the disk only as a whole, and the first
// read of what is missing fetches all of it (layer.Options.Unpack).

// fromStart says whether l is such a layer.
func (l *openLayer) fromStart() bool {
	spans, err := l.index.Spans()
	return err == nil && spans.FromStart()
}

// readerMemory is what a decoder may take without waiting for scans, bytes: more than one with an
// ordinary window. A container's read must not wait for somebody's slow pull.
const readerMemory = 16 << 20

// unpack is layer.Options.Unpack.
func (l *openLayer) unpack(ctx context.Context, blob io.Reader) (io.ReadCloser, error) {
	c := l.t.pulls.Scan(ctx)
	out, err := targz.Unpack(blob, func(n int64) error {
		if n <= readerMemory {
			c.Count(n)
			return nil
		}
		return c.Take(n)
	})
	if err != nil {
		c.End()
		return nil, err
	}
	return &metered{out, c}, nil
}

// metered is a decoder whose memory counts.
type metered struct {
	io.ReadCloser
	memory *pull.Scan
}

// Close implements io.Closer.
func (m *metered) Close() error {
	defer m.memory.End()
	return m.ReadCloser.Close()
}

// addRef notes an image that brought the layer.
func (l *openLayer) addRef(ref string) error {
	if ref == "" || !l.origins.Add(ref) {
		return nil
	}
	return l.store.AddRef(ref)
}

// close unmounts lazy mounts, ends reads, and lets the store's layer go. Mounts of a complete
// layer stay.
func (l *openLayer) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Swap(true) {
		return nil
	}
	l.stop()
	if l.delay != nil {
		l.delay.Stop()
	}
	l.t.fetch.Forget(l.digest)
	// First what mounts read from: whoever waits for the network there gets an error, and no
	// unmount waits for it.
	l.data.Close()
	var errs []error
	for _, p := range l.points {
		errs = append(errs, p.close(l.t))
	}
	for _, s := range append(l.detached, l.device) {
		if s != nil {
			errs = append(errs, l.t.end(l.t.ctx, s))
		}
	}
	errs = append(errs, l.file.Close(), l.store.Close())
	return errors.Join(errs...)
}

// leave hands the mounts that the keeper has over to the next process: from now on nobody answers
// them here. close comes after it.
func (l *openLayer) leave() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	handOver := func(s **served) {
		if *s != nil && (*s).name != "" {
			errs = append(errs, (*s).Leave())
			*s = nil
		}
	}
	for _, p := range l.points {
		handOver(&p.tree)
		if p.mode == EROFS && l.device != nil && l.device.name != "" {
			p.mode = Local // nothing to be undone
		}
	}
	handOver(&l.device)
	for i := range l.detached {
		handOver(&l.detached[i])
	}
	return errors.Join(errs...)
}
