package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// Names in a layer's folder.
const (
	indexName   = "index"
	windowsName = "windows"
	deviceName  = "device"
	presentName = "present"
	recordName  = "layer.json"
)

// deviceAlign is the unit of a device's length on disk: a tar block, which is
// also the block of the trees that point into it.
const deviceAlign = 512

// Layer is one layer's folder. All callers that have a layer open share one
// Layer; all methods may run in parallel. Each Store.Layer or Incoming.Commit
// that returned it is paired with one Close.
//
// A Layer holds no file open until its device or its windows are first read or
// written, and at most the device twice and the windows from then on.
type Layer struct {
	store  *Store
	digest digest.Digest
	dir    string
	log    *slog.Logger
	entry  *entry
	space  *space // what dir takes on disk
	size   int64  // of the device, not rounded

	present *set
	pages   *pages
	device  lazyFile
	direct  directFile // the device once more
	windows lazyFile

	// writing is held shared while a span is written and published, and alone where bytes of the
	// device go. It is taken after flushMu and before mu.
	writing   sync.RWMutex
	evictions atomic.Uint64
	reads     reads
	own       own
	known     atomic.Pointer[known] // nil: see Know
	doubts    singleflight.Group
	given     given
	whole     atomic.Uint64 // 1 + evictions when the device was verified last; 0: it was not
	unsynced  atomic.Bool   // something was written since the last sync of the device

	// flushMu serialises what writes to the folder: the map, the record. It is held over disk
	// writes, so WriteSpan never takes it, and readers only where they find what they read wrong.
	flushMu    sync.Mutex
	gone       bool   // the folder is not this Layer's any more: removed, or closed
	recorded   State  // as layer.json has it
	generation uint64 // of the map on disk

	mu       sync.Mutex // never held over disk access
	record   Record
	sealed   bool  // the kernel may read the device by itself: no span of it goes
	bytes    int64 // of present spans
	unsaved  []unsaved
	saving   []unsaved // what the flush under way, or the last one if it failed, took from unsaved
	zeros    zeros     // in what was written since all was durable
	dirty    bool      // something is present that the disk does not say
	epoch    uint64    // counts the failed syncs of the device
	durable  []uint64  // the spans whose bytes are durable
	durableN int64     // bytes of these
}

// loadLayer opens the folder of layer d as the last run left it, or as much of it
// as can be trusted.
func loadLayer(s *Store, e *entry, d digest.Digest) (*Layer, error) {
	dir := s.layerDir(d)
	b, err := readFile(s.disk, dir+"/"+recordName, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		if ok, _ := s.exists(dir); ok {
			// It may just have come. Folders come whole, and do not go meanwhile.
			if b, err = readFile(s.disk, dir+"/"+recordName, maxRecord); errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%w: no %s", ErrDamaged, recordName)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	rec, err := decodeRecord(b, d)
	if err != nil {
		return nil, err
	}
	l := &Layer{
		store:    s,
		digest:   d,
		dir:      dir,
		log:      s.log.With("layer", d.String()),
		entry:    e,
		space:    s.usage.of(d),
		size:     rec.DeviceSize,
		present:  newSet(rec.Spans),
		pages:    newPages(rec.DeviceSize),
		zeros:    zeros{},
		record:   rec,
		recorded: rec.State,
	}
	l.own.sure = newSet(rec.Spans)
	l.device.open = func() (files.File, error) { return s.disk.Open(dir+"/"+deviceName, os.O_RDWR) }
	l.direct.open = func() (files.File, error) { return s.disk.Open(dir+"/"+deviceName, os.O_RDONLY|unix.O_DIRECT) }
	l.windows.open = func() (files.File, error) { return s.disk.Open(dir+"/"+windowsName, os.O_RDONLY) }
	if err := l.loadPresence(); err != nil {
		return nil, err
	}
	l.reads.load(l)
	l.Measure()
	return l, nil
}

// loadPresence finds out what is present: everything in a layer that the
// record calls complete, else what the map says, else nothing.
func (l *Layer) loadPresence() error {
	size, sealed, err := l.deviceLength()
	l.sealed = sealed
	if err != nil {
		return err
	}
	if size != l.Size() {
		return l.reset(fmt.Errorf("device has %d bytes instead of %d", size, l.Size()))
	}
	if l.record.State > Lazy {
		l.present.fill()
		l.bytes = l.size
		l.markDurable(l.present.snapshot(), l.bytes)
		return nil
	}
	p, err := loadPresence(l.store.disk, l.dir+"/"+presentName, l.record.mapping())
	if err != nil && !errors.Is(err, errNoMap) {
		return err // the map may be good
	}
	if err != nil {
		l.log.Warn("layer is fetched again", "err", err)
		// Never write into what is left of it: a slot could become whole
		// again, with a generation above the new one's.
		if err := l.store.disk.RemoveAll(l.dir + "/" + presentName); err != nil {
			return err
		}
	}
	if p == nil {
		if l.sealed {
			// It came whole and was not recorded in time. The kernel may still read it; what comes
			// goes elsewhere.
			_, err := l.renew()
			return err
		}
		return nil
	}
	l.present.restore(p.bits)
	l.bytes = p.bytes
	l.generation = p.generation
	l.markDurable(p.bits, p.bytes)
	return nil
}

// reset starts the layer anew because its device is not what the rest of the
// folder says.
func (l *Layer) reset(why error) error {
	l.log.Warn("layer is fetched again", "err", why)
	l.record.State = Lazy
	_, err := l.renew()
	return err
}

func (l *Layer) writeRecord(r *Record) error {
	b, err := encodeRecord(r)
	if err != nil {
		return err
	}
	return l.store.writeFile(l.dir, recordName, b)
}

// Digest returns the layer's digest.
func (l *Layer) Digest() digest.Digest { return l.digest }

// Dir returns the layer's folder.
func (l *Layer) Dir() string { return l.dir }

// IndexPath returns the path of the index file, which is an EROFS image.
func (l *Layer) IndexPath() string { return l.dir + "/" + indexName }

// DevicePath returns the path of the device file: what the index's image takes
// as its device once the layer is Verified. Never mount it before: a missing
// span reads as zeros.
func (l *Layer) DevicePath() string { return l.dir + "/" + deviceName }

// Record returns what the store knows about the layer now.
func (l *Layer) Record() Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record.clone()
}

// Size returns the length of the device file: DeviceSize rounded up to whole
// tar blocks. The bytes behind DeviceSize are zero.
func (l *Layer) Size() int64 { return roundUp(l.size) }

func roundUp(n int64) int64 { return (n + deviceAlign - 1) / deviceAlign * deviceAlign }

// Present says whether span i can be read. It takes no lock and no time.
func (l *Layer) Present(i int) bool { return l.present.has(i) }

// AllPresent says whether every span can be read.
func (l *Layer) AllPresent() bool { return l.present.full() }

// Count returns how many spans are present, and the sum of their sizes.
func (l *Layer) Count() (spans int, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.present.count.Load()), l.bytes
}

// readAt reads device bytes as io.ReaderAt. It does not look at the presence map: only ranges whose
// spans are present hold the layer's bytes.
func (l *Layer) readAt(p []byte, off int64) (int, error) {
	if len(p) < directFrom {
		return l.readBuffered(p, off)
	}
	if l.pages.cold(off, int64(len(p))) && l.readDirect(p, off) {
		return len(p), nil
	}
	n, err := l.readBuffered(p, off)
	l.passed(off, int64(n))
	return n, err
}

// readBuffered reads through the page cache.
func (l *Layer) readBuffered(p []byte, off int64) (int, error) {
	f, err := l.device.get()
	if err != nil {
		return 0, err
	}
	n, err := f.ReadAt(p, off)
	l.store.faults.note(err)
	return n, err
}

// ErrCut is wrapped by errors about a device file that is shorter than the layer: see lengthen.
var ErrCut = errors.New("the device has lost its end")

// Windows returns the layer's windows section where the layer has it on disk,
// else an error that wraps fs.ErrNotExist. It is valid until the last Close.
func (l *Layer) Windows() (io.ReaderAt, error) { return l.windows.get() }

// WriteSpan writes the verified bytes of span i, and then publishes the span: Present and the reads
// of other callers see it from then on, the map on disk after the next flush. Parallel calls for
// one span are harmless. After an error the span is not present; the caller still holds the bytes
// and can serve them.
func (l *Layer) WriteSpan(i int, data []byte) error {
	spans, err := l.table()
	if err != nil {
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, err)
	}
	if uint(i) >= uint(min(len(spans), l.present.n)) || int64(len(data)) != spans[i].Size ||
		spans[i].Size > l.size-spans[i].Device {
		return fmt.Errorf("write span %d of layer %s: it does not have %d bytes, or the layer has no such span",
			i, l.digest, len(data))
	}
	off := spans[i].Device
	l.writing.RLock()
	defer l.writing.RUnlock()
	f, err := l.device.get()
	if err != nil {
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, err)
	}
	l.mu.Lock()
	epoch := l.epoch
	l.mu.Unlock()
	// The spans that a file has lost must not come back as zeros because it is made long again.
	if length, err := f.Size(); err != nil || length < l.Size() {
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, cmp.Or(err, ErrCut))
	}
	write := func() error {
		_, err := f.WriteAt(data, off)
		return err
	}
	if err := l.modify(f, write); err != nil {
		l.store.faults.note(err)
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, err)
	}
	// All before the span is published: whoever sees it sees that it is not durable.
	l.pages.wrote(off, int64(len(data)))
	zeros := zerosIn(data, off)
	head, tail := edges(data, off)
	l.mu.Lock()
	if l.epoch != epoch {
		// A sync of the device failed meanwhile and may have dropped these bytes.
		l.mu.Unlock()
		return fmt.Errorf("write span %d of layer %s: %w", i, l.digest, unix.EIO)
	}
	l.reads.touch(i, i+1)
	fresh := !l.present.has(i)
	if fresh {
		l.unsaved = append(l.unsaved, unsaved{i, off, int64(len(data)), head, tail})
		l.zeros.add(zeros)
		l.unsynced.Store(true)
		l.bytes += int64(len(data))
		l.dirty = true
	}
	l.present.add(i)
	if !l.store.faults.lately() {
		l.own.sure.add(i)
	}
	l.mu.Unlock()
	if fresh {
		l.store.usage.add(l.space, int64(len(data)))
		l.store.changed(l, int64(len(data)))
	}
	return nil
}

// AddRef notes that an image reference brought the layer, so that a later run
// knows where to fetch from.
func (l *Layer) AddRef(ref string) error {
	return l.change(func(r *Record) bool { return r.addRef(ref) })
}

// Mark raises the layer's state, durably: the device's bytes are synced before the record says so,
// and Record says it when the disk does. All spans must be present; whoever marks a layer Verified
// has had VerifyWhole succeed, or computed the diffID on the way in.
func (l *Layer) Mark(state State) error {
	l.flushMu.Lock() // no span goes meanwhile
	defer l.flushMu.Unlock()
	if !l.present.full() {
		return fmt.Errorf("mark layer %s %s: %d of %d spans are present",
			l.digest, state, l.present.count.Load(), l.present.n)
	}
	if state == Verified {
		// Before anybody can take it for what may be mounted.
		if err := l.seal(); err != nil {
			return fmt.Errorf("mark layer %s %s: %w", l.digest, state, err)
		}
	}
	if l.recorded < state || l.Record().State < state {
		l.setDirty()
	}
	if err := l.save(state); err != nil {
		return fmt.Errorf("mark layer %s %s: %w", l.digest, state, err)
	}
	return nil
}

// Hold opens the files that spans are written to and decoded with, which their first use does
// otherwise. They stay open until the last Close, also when somebody deletes the layer's folder:
// what comes of it is kept all the same.
func (l *Layer) Hold() error {
	_, err := l.device.get()
	_, noWindows := l.windows.get()
	if errors.Is(noWindows, fs.ErrNotExist) {
		noWindows = nil // they are at the registry, or there are none
	}
	if err := errors.Join(err, noWindows); err != nil {
		return fmt.Errorf("hold layer %s: %w", l.digest, err)
	}
	return nil
}

// Close gives up one opening of the layer. The last one makes durable what is
// present and closes the files.
func (l *Layer) Close() error { return l.store.unref(l.digest, l.entry) }

// shut is the last Close.
func (l *Layer) shut() error {
	err := l.flush()
	if err != nil {
		err = fmt.Errorf("close layer %s: %w", l.digest, err)
	}
	l.SaveReads()
	l.flushMu.Lock()
	l.gone = true
	l.flushMu.Unlock()
	l.store.forget(l)
	return errors.Join(err, l.device.close(), l.direct.close(), l.windows.close())
}
