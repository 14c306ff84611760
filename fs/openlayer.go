package fs

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// openLayer is a layer of the table that is open: its index, its bytes, its mounts.
type openLayer struct {
	t       *Table
	digest  digest.Digest
	key     string // names its mount points
	store   *store.Layer
	file    *os.File // the index file
	index   *index.Layer
	marks   func() (index.Marks, error) // the index's, looked for once
	data    *layer.Layer
	origins *source.Origins
	filling filling
	proof   *proof.Proof
	opened  time.Time
	came    chan struct{}      // a token: the last span has come
	stop    context.CancelFunc // of tend

	mu       sync.Mutex             // held over mount(2), never over the network
	closed   atomic.Bool            // set with mu held
	device   *served                // erofs mode: the FUSE mount of the device
	points   map[string]*mountPoint // by directory
	detached []*served              // which lie nowhere any more, but are in use
}

// openStored opens a layer that the store has; the error wraps os.ErrNotExist otherwise. A damaged
// layer is removed, and then the store has not got it.
func (t *Table) openStored(d digest.Digest) (*openLayer, error) {
	v, err := t.openFolder(d)
	if errors.Is(err, store.ErrDamaged) {
		err = t.removeDamaged(d, err)
		if err == nil {
			v, err = t.openFolder(d) // most often there is none
		}
	}
	if err != nil {
		return nil, err
	}
	v.start()
	return v, nil
}

// removeDamaged removes the folder of a layer of which another look says too that it is damaged.
// (In between it may have gone, and come anew.)
func (t *Table) removeDamaged(d digest.Digest, why error) error {
	t.damage.Lock()
	defer t.damage.Unlock()
	v, err := t.openFolder(d)
	if err == nil {
		return errors.Join(v.file.Close(), v.store.Close())
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
	v := &openLayer{
		t: t, digest: d, key: mountKey(d), store: s, file: f, opened: time.Now(),
		came: make(chan struct{}, 1), points: map[string]*mountPoint{},
	}
	if err := v.openIndex(); err != nil {
		return nil, errors.Join(damaged(err), f.Close(), s.Close())
	}
	return v, nil
}

// start makes a layer whose files are open ready to be read, and has its bytes fetched.
func (v *openLayer) start() {
	t, s := v.t, v.store
	rec := s.Record()
	v.origins = source.NewOrigins(t.o.Remote, t.o.ReadDeadline, &t.prefetch, rec.Refs)
	pushed := t.copies.Feed(&rec)
	o := layer.Options{
		Blob:     source.New(v.origins, rec.Layer, rec.LayerSize, 0, rec.LayerSize),
		Unpack:   v.unpack,
		Push:     pushed,
		Budget:   t.budget,
		Deadline: t.o.ReadDeadline,
		Complete: v.lastCame,
		Waited:   func(off, end int64) { t.fetch.Near(v.digest, off, end) },
		Log:      t.log,
	}
	if w := rec.Windows; w.Blob != "" {
		o.Windows = source.New(v.origins, w.Blob, w.BlobSize, w.Off, v.index.Header().WindowsSize)
	}
	v.proof = proof.New(v, t.o.LocalIndexes, t.log)
	v.data = layer.New(v.index, t.cache.Guard(s, v.whole()), o)
	pushed.Open(v.data)
	ctx, stop := context.WithCancel(t.ctx)
	v.stop = stop
	t.goes(func(context.Context) { v.tend(ctx) })
	now := v.stage()
	if now == stageLazy {
		if err := s.Hold(); err != nil {
			t.log.Warn("layer's files do not open: what comes of it is not kept until they do",
				"layer", v.digest, "err", err)
		}
		t.fetch.Add(v.digest, v.data)
		v.filling.timer = time.AfterFunc(fillDelay, v.startFill)
		return
	}
	t.fetch.Whole(v.digest)
	if now == stageWhole || now == stageProved {
		v.lastCame() // an earlier run has not come to it
	}
}

// device is the layer as the kernel's side sees it: as long as the tar.
type device struct {
	*layer.Layer
	size   int64
	record func(off, n int64)
	log    *slog.Logger
}

// Size returns the length of the uncompressed tar.
func (d device) Size() int64 { return d.size }

// ReadAt is what readers come through, and so where their reads are recorded.
func (d device) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.record(off, int64(len(p)))
	return d.timed(ctx, off, int64(len(p)), func() error { return d.Layer.ReadAt(ctx, p, off) })
}

// Fill is where a read of a FUSE file waits, before ReadAt.
func (d device) Fill(ctx context.Context, off, n int64) error {
	return d.timed(ctx, off, n, func() error { return d.Layer.Fill(ctx, off, n) })
}

// timed notes how long a read took, where that is asked for and worth it.
func (d device) timed(ctx context.Context, off, n int64, read func() error) error {
	if !d.log.Enabled(ctx, slog.LevelDebug) {
		return read()
	}
	start := time.Now()
	err := read()
	if took := time.Since(start); took >= time.Millisecond {
		d.log.DebugContext(ctx, "read waited", "off", off, "bytes", n, "took", took)
	}
	return err
}

func (v *openLayer) bytes() device {
	record := func(off, n int64) {
		v.wasRead()
		v.t.recordings.read(v.digest, off, n)
		if f := v.t.o.Record; f != nil {
			f(v.digest, off, n)
		}
	}
	return device{v.data, v.index.Header().DeviceSize, record, v.t.log.With("layer", v.digest)}
}

// openIndex opens the index file and checks that it belongs to what the record says.
func (v *openLayer) openIndex() error {
	st, err := v.file.Stat()
	if err != nil {
		return err
	}
	if v.index, err = index.Open(v.file, st.Size()); err != nil {
		return err
	}
	h, rec := v.index.Header(), v.store.Record()
	if h.Layer != rec.Layer || h.DiffID != rec.DiffID || h.DeviceSize != rec.DeviceSize {
		return fmt.Errorf("%w: it is of layer %s", index.ErrCorrupt, h.Layer)
	}
	v.marks = sync.OnceValues(v.index.Marks)
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

// mountKey names what there is of a layer once: 96 bits of the digest, of which a layer would
// have to be made with another's in mind.
func mountKey(d digest.Digest) string {
	return d.Encoded()[:24]
}

// addRef notes an image that brought the layer.
func (v *openLayer) addRef(ref string) error {
	if ref == "" || !v.origins.Add(ref) {
		return nil
	}
	return v.store.AddRef(ref)
}

// close unmounts lazy mounts, ends reads, and lets the store's layer go. Mounts of a complete
// layer stay.
func (v *openLayer) close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed.Swap(true) {
		return nil
	}
	v.stop()
	if v.filling.timer != nil {
		v.filling.timer.Stop()
	}
	v.t.fetch.Forget(v.digest)
	// First what mounts read from: whoever waits for the network there gets an error, and no
	// unmount waits for it.
	v.data.Close()
	var errs []error
	for _, p := range v.points {
		errs = append(errs, p.close(v.t))
	}
	for _, s := range append(v.detached, v.device) {
		if s != nil {
			errs = append(errs, v.t.end(v.t.ctx, s))
		}
	}
	errs = append(errs, v.file.Close(), v.store.Close())
	return errors.Join(errs...)
}

// leave hands the mounts that the keeper has over to the next process: from now on nobody answers
// them here. close comes after it.
func (v *openLayer) leave() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	handOver := func(s **served) {
		if *s != nil && (*s).name != "" {
			errs = append(errs, (*s).Leave())
			*s = nil
		}
	}
	for _, p := range v.points {
		handOver(&p.tree)
		if p.mode == EROFS && v.device != nil && v.device.name != "" {
			p.mode = Local // nothing to be undone
		}
	}
	handOver(&v.device)
	for i := range v.detached {
		handOver(&v.detached[i])
	}
	return errors.Join(errs...)
}

// ofDisk says that err is what the system said about a file, rather than what is in it.
func ofDisk(err error) bool {
	var path *iofs.PathError
	return errors.As(err, &path)
}

// mountPoints returns the mount points of a layer: those that have names, and those of former
// versions, which are named after the layer.
func (t *Table) mountPoints(d digest.Digest) ([]string, error) {
	former, err := filepath.Glob(filepath.Join(t.o.Root, mountsName, mountKey(d)+"*"))
	dirs := append(t.names.of(d), former...)
	slices.Sort(dirs)
	return slices.Compact(dirs), err
}

// clearMounts takes all mounts of a layer out of the file tree, and removes the mount points. Their
// names stay, for when the layer is mounted again.
func (t *Table) clearMounts(d digest.Digest) error {
	dirs, err := t.mountPoints(d)
	errs := []error{err}
	for _, dir := range append(dirs, filepath.Join(t.o.Root, devicesName, mountKey(d))) {
		errs = append(errs, removePoint(dir))
	}
	return errors.Join(errs...)
}

// removePoint removes a mount point, with what is mounted there, if it is there. It asks nothing of
// what is mounted, which may answer to nobody.
func removePoint(dir string) error {
	return errors.Join(unmount(dir), ignoreMissing(os.Remove(dir)))
}
