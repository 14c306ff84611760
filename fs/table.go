package fs

import (
	"context"
	"errors"
	iofs "io/fs"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/copies"
	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/keeper"
	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/pull"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote"
)

// Options of a Table. Root and Remote must be set.
type Options struct {
	Root         string         // folder of the store and the mount points; an absolute path
	Remote       *remote.Client // where indexes and layers come from
	Mode         Mode           // Auto, or one that is forced on every layer
	DirectIO     bool           // EROFS stands on loop devices, so that files open with O_DIRECT
	ReadDeadline time.Duration  // how long a read waits for bytes; 0: the layer package's default
	PullDeadline time.Duration  // how long a pull goes on without receiving a byte; 0: 1 minute
	Downloads    int            // layers downloaded whole at the same time; 0: 4
	LocalIndexes bool           // do not use indexes from registries
	Limits       pull.Limits    // of what images may demand
	// Scanning is told how many bytes of memory scans hold, when that changes. It must not block.
	// nil: nobody is.
	Scanning func(bytes int64)
	// Profiles keeps what the first starts of images read, and is asked for it by later pulls. nil:
	// nothing is recorded.
	Profiles   *profile.Dir
	RecordTime time.Duration // the longest that a start is recorded; 0: 1 minute
	Fetch      fetch.Options // what is fetched that no reader has asked for
	// Record is told of every read of a lazy layer, in device offsets, when it comes from
	// the kernel. It is called in parallel and has to be quick. nil: nobody is.
	Record func(layer digest.Digest, off, n int64)
	// Keeper keeps the mounts of lazy layers alive over the end of this process, and Held is what
	// it kept of the last one's: Open closes it. nil: lazy mounts end with the process.
	Keeper Keeper
	Held   []keeper.Held
	Cache  cache.Options // how much of the disk layers may take
	Log    *slog.Logger  // nil: slog.Default()

	probe prober // nil: erofs.Probe
}

// Table is the open layers of a node. Open makes it.
type Table struct {
	o        Options
	log      *slog.Logger
	store    *store.Store
	names    *names
	prefetch source.Prefetch
	copies   *copies.Copies
	cache    *cache.Cache
	budget   *line.Budget
	memory   *fuse.Memory
	fetch    *fetch.Scheduler
	kernel   func() (kernel, error) // what the kernel can do; kept once it is known
	pulls    *pull.Pulls
	mounter  erofs.Mounter   // of what this process serves
	fixed    atomic.Bool     // this kernel cannot put a mount in the place of another
	ctx      context.Context // of what runs in the background; ended by Close
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[digest.Digest]*tableEntry
	demand  demand

	damage    sync.Mutex // held by who removes a layer that is damaged, or gives way to another
	rewriting sync.Mutex // held by whoever writes an index as the layers below change it

	heldMu sync.Mutex
	held   map[digest.Digest][]*heldMount // mounts of a former process whose layer is not open

	mountsMu sync.RWMutex // held for writing by a sweep of mount points, for reading by who mounts

	recordings *profile.Recordings
	replays    []replayed
	panics     atomic.Int64
}

// Layer is one layer of an image, as containerd names it.
type Layer struct {
	Ref      string        // the image's reference
	Manifest digest.Digest // of the image's manifest
	Digest   digest.Digest // of the layer's blob
	DiffID   digest.Digest // of its uncompressed tar; "": not known
	// Image is this layer and those above it that will be asked for next.
	Image []digest.Digest
	// Dir is where the layer has to be seen, because Mount or Promise has said so before, maybe of
	// another version; "": wherever it is.
	Dir string
}

// Below is a layer under the one to be mounted.
type Below struct {
	Digest digest.Digest // "" where it is not one of the Table's
	Dir    string        // where it is to be seen
}

// Mounted is a layer that can be read.
type Mounted struct {
	Dir    string        // where it is to be seen, read-only
	DiffID digest.Digest // of the tar that is to be seen there
	Size   int64         // bytes of the layer, unpacked
	Inodes int64         // files of the layer
}

// demand says who may have a layer: whoever has asked for it by Mount, until Remove; and the
// removal that is under way. Guarded by Table.mu.
type demand struct {
	wanted   map[digest.Digest]bool
	removing map[digest.Digest]chan struct{} // closed when the removal has ended
}

// tableEntry is the place of one layer in the table: opened by the first who needs it.
type tableEntry struct {
	open  func() (*openLayer, error)
	ready atomic.Bool // open has returned
}

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
	filled  atomic.Bool // its fill has begun
	delay   *time.Timer // until it begins by itself; nil: it was not lazy
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

// mountPoint is a mount point of a layer. There is one for each spot.
type mountPoint struct {
	dir   string
	index string  // path of the index file that is mounted
	mode  Mode    // how dir shows the layer; "": not known
	id    int     // of the mount that is visible there; 0: not known
	tree  *served // fuse mode; what is mounted over it, when the layer is complete, does not end it
}

// opened returns the layers that are open; wait: also those that are just being opened, when they
// are.
func (t *Table) opened(wait bool) []*openLayer {
	t.mu.Lock()
	entries := slices.Collect(maps.Values(t.entries))
	t.mu.Unlock()
	var all []*openLayer
	for _, e := range entries {
		if wait || e.ready.Load() {
			if l, err := e.open(); err == nil {
				all = append(all, l)
			}
		}
	}
	return all
}

// openNow returns a layer of the table if it is open, else nil.
func (t *Table) openNow(d digest.Digest) *openLayer {
	t.mu.Lock()
	e := t.entries[d]
	t.mu.Unlock()
	if e == nil || !e.ready.Load() {
		return nil
	}
	l, _ := e.open()
	return l
}

// goes runs f in the background unless the table is closed.
func (t *Table) goes(f func(ctx context.Context)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.running.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				t.panicked(v)
			}
		}()
		f(t.ctx)
	})
	return true
}

// panicked notes what a panic has left; what it was about has failed, and nothing else.
func (t *Table) panicked(v any) {
	t.panics.Add(1)
	t.log.Error("panic", "panic", v, "stack", string(debug.Stack()))
}

// Panics returns how many panics there have been since the start, in requests of the kernel and in
// what runs in the background.
func (t *Table) Panics() int64 { return t.panics.Load() }

// mountKey names what there is of a layer once: 96 bits of the digest, of which a layer would
// have to be made with another's in mind.
func mountKey(d digest.Digest) string {
	return d.Encoded()[:24]
}

// ofDisk says that err is what the system said about a file, rather than what is in it.
func ofDisk(err error) bool {
	var path *iofs.PathError
	return errors.As(err, &path)
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// replayed is a replay that was begun for an image.
type replayed struct {
	ref      string
	manifest digest.Digest
	began    time.Time
	replay   *fetch.Replay
}
