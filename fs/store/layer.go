package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
)

// Names in a layer's folder.
const (
	indexName   = "index"
	windowsName = "windows"
	deviceName  = "device"
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
	given     *set          // spans that were given up because they could not be read
	warm      atomic.Bool   // some of the device is, or soon will be, in the page cache: see drop
	whole     atomic.Uint64 // 1 + evictions when the device was verified last; 0: it was not

	// flushMu serialises what writes to the folder: the map, the record. It is held over disk
	// writes, so WriteSpan never takes it, and readers only where they find what they read wrong.
	flushMu    sync.Mutex
	gone       bool   // the folder is not this Layer's any more: removed, or closed
	recorded   State  // as layer.json has it
	generation uint64 // of the map on disk

	mu       sync.Mutex // never held over disk access
	record   Record
	sealed   bool      // the kernel may read the device by itself: no span of it goes
	bytes    int64     // of present spans
	unsaved  []unsaved // flush takes from its beginning what it has made durable
	zeros    zeros     // in what was written since all was durable
	dirty    bool      // something is present that the disk does not say
	epoch    uint64    // counts the failed syncs of the device
	durable  []uint64  // the spans whose bytes are durable
	durableN int64     // bytes of these
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

// Windows returns the layer's windows section where the layer has it on disk,
// else an error that wraps fs.ErrNotExist. It is valid until the last Close.
func (l *Layer) Windows() (io.ReaderAt, error) { return l.windows.get() }

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

func (l *Layer) isDirty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dirty
}

func (l *Layer) setDirty() {
	l.mu.Lock()
	l.dirty = true
	l.mu.Unlock()
}

// markDurable notes what the disk holds.
func (l *Layer) markDurable(bits []uint64, bytes int64) {
	l.durable, l.durableN = bits, bytes
}
