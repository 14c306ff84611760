package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/cache"
	"github.com/mica-snapshotter/mica/fs/copies"
	"github.com/mica-snapshotter/mica/fs/erofs"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/fuse"
	"github.com/mica-snapshotter/mica/fs/keeper"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/pull"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/fs/store"
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

	probe func(ctx context.Context, root string) (erofs.Support, error) // nil: erofs.Probe
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
	kernel   func() (kernel, error) // what the kernel can do; tried once
	pulls    *pull.Pulls
	mounter  erofs.Mounter   // of what this process serves
	fixed    atomic.Bool     // this kernel cannot put a mount in the place of another
	ctx      context.Context // of what runs in the background; ended by Close
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[digest.Digest]*tableEntry
	claims  demand
	held    map[digest.Digest][]*heldMount // mounts of a former process whose layer is not open

	damage    sync.Mutex // held by who removes a layer that is damaged, or gives way to another
	rewriting sync.Mutex // held by whoever writes an index as the layers below change it

	mountsMu sync.RWMutex // held for writing by a sweep of mount points, for reading by who mounts

	recordings recordings
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

// ErrUnavailable is wrapped by the errors of Mount that mean: Mica cannot serve this
// layer, and trying again at once will not help.
var ErrUnavailable = errors.New("layer is not available")

// Names below Options.Root.
const (
	mountsName  = "m"
	namesName   = "names"
	devicesName = "dev"
)

// Open opens the store below o.Root and makes an empty table. Layers that the store has
// are mounted when Mount asks for them. ctx is used for its values alone. Pair it with Close.
func Open(ctx context.Context, o Options) (*Table, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.PullDeadline == 0 {
		o.PullDeadline = time.Minute
	}
	if o.Fetch.Log == nil {
		o.Fetch.Log = o.Log
	}
	if o.RecordTime == 0 {
		o.RecordTime = time.Minute
	}
	if o.Downloads == 0 {
		o.Downloads = 4
	}
	if o.probe == nil {
		o.probe = erofs.Probe
	}
	for _, name := range []string{mountsName, devicesName} {
		// Root's alone: whoever knows a digest could read that image's files here. Overlayfs has
		// its lower directories looked up when root mounts it, for containers in user namespaces
		// too.
		dir := filepath.Join(o.Root, name)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return nil, fmt.Errorf("open layers: %w", err)
		}
	}
	n, err := openNames(o.Root)
	if err != nil {
		return nil, err
	}
	s, err := openStore(ctx, o.Root)
	if err != nil {
		return nil, err
	}
	budget := line.New(0, 0)
	o.Fetch.Budget = budget
	t := &Table{
		o: o, log: o.Log, store: s, names: n,
		budget:  budget,
		copies:  copies.New(budget, o.Log),
		memory:  fuse.NewMemory(0),
		entries: map[digest.Digest]*tableEntry{},
		claims: demand{wanted: map[digest.Digest]bool{},
			removing: map[digest.Digest]chan struct{}{}},
		held: map[digest.Digest][]*heldMount{},
	}
	t.ctx, t.stop = context.WithCancel(context.WithoutCancel(ctx))
	if t.cache, err = cache.New(t.ctx, cacheHost{t}, s, o.Root, o.Cache, o.Log); err != nil {
		t.stop()
		return nil, errors.Join(err, s.Close())
	}
	o.Fetch.Hold = t.cache.Pause
	t.fetch = fetch.New(o.Fetch)
	t.pulls = t.newPulls()
	t.kernel = sync.OnceValues(func() (kernel, error) { return probe(t.ctx, o) })
	t.running.Go(func() { t.fetch.Run(t.ctx) })
	t.adoptAll(t.ctx, o.Held) // before all else: readers wait
	began := time.Now()
	t.goes(func(ctx context.Context) { t.cleanUp(ctx, began) })
	t.running.Go(func() { t.cache.Run(t.ctx) })
	t.running.Go(func() { // so that the first Mount need not wait for it
		if k, err := t.kernel(); err == nil && k.lazy == EROFS {
			t.mounter.Warm()
		}
	})
	t.running.Go(func() {
		if err := s.Run(t.ctx); err != nil && t.ctx.Err() == nil {
			t.log.Error("store stopped writing its presence maps: layers will be fetched again "+
				"after a restart", "err", err)
		}
	})
	return t, nil
}

// storePatience is how long Open waits for the store: a process that was killed lets go of it when
// the kernel has done away with it.
const storePatience = 2 * time.Second

func openStore(ctx context.Context, root string) (*store.Store, error) {
	for end := time.Now().Add(storePatience); ; time.Sleep(10 * time.Millisecond) {
		s, err := store.Open(root)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || ctx.Err() != nil {
			return s, err
		}
	}
}

// Close ends pulls and closes the store. Mounts of lazy layers that a keeper has are left to the
// next process: who reads them waits for it. Without a keeper they end, and their readers get
// errors. Mounts of complete layers stay: they need no daemon.
func (t *Table) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	slots := make([]*tableEntry, 0, len(t.entries))
	for _, s := range t.entries {
		slots = append(slots, s)
	}
	t.mu.Unlock()
	t.stop()
	var errs []error
	if t.keeps() {
		// What takes long is done while reads are still answered.
		t.running.Wait()
		errs = append(errs, t.store.Flush())
		for _, s := range slots {
			errs = append(errs, s.leave())
		}
	}
	for _, s := range slots {
		errs = append(errs, s.close())
	}
	t.running.Wait()
	t.mounter.Close()
	errs = append(errs, t.giveUpHeld(context.WithoutCancel(t.ctx), true))
	return errors.Join(append(errs, t.store.Close())...)
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

// Mount makes the layer appear and returns where. below are the layers under it, topmost first:
// directories that the layer's tar implies but does not mention show the attributes that they have
// there. Mount is idempotent, and returns the same directory for equal arguments, after a restart
// too.
func (t *Table) Mount(ctx context.Context, l Layer, below []Below) (m Mounted, err error) {
	defer func() {
		if ctx.Err() == nil && t.ctx.Err() == nil {
			t.pulls.Settle(l.Digest, err)
		}
		if errors.Is(err, ErrUnavailable) {
			t.pulls.InVain(requestOf(l, below), err)
		}
	}()
	if err := l.Digest.Validate(); err != nil {
		return Mounted{}, fmt.Errorf("mount layer %q: %w", l.Digest, err)
	}
	if err := t.want(ctx, l.Digest); err != nil {
		return Mounted{}, fmt.Errorf("mount layer %s: %w", l.Digest, err)
	}
	t.pulls.Heed(requestOf(l, below))
	v, err := t.believedLayer(ctx, l, below)
	if err != nil {
		return Mounted{}, t.unavailable(ctx, l, err)
	}
	dir, err := v.mount(ctx, l.Dir, below)
	if err == nil {
		err = v.proof.Shown()
	}
	if err != nil {
		return Mounted{}, t.unavailable(ctx, l, err)
	}
	t.vouchBelow(l, below)
	h := v.index.Header()
	return Mounted{Dir: dir, DiffID: h.DiffID, Size: h.DeviceSize, Inodes: v.index.Inodes()}, nil
}

// unavailable makes err say that containerd should pull the layer itself, unless the caller or
// the table has ended: whatever the reason, an ordinary snapshot may still work.
func (t *Table) unavailable(ctx context.Context, l Layer, err error) error {
	err = fmt.Errorf("%w (layer %s)", err, l.Digest) // the cause first: somebody reads it in a list
	if ctx.Err() != nil || t.ctx.Err() != nil {
		return err
	}
	return unavailableError{err}
}

// unavailableError is an ErrUnavailable that says no more than its cause.
type unavailableError struct{ error }

// Is implements what errors.Is asks for.
func (unavailableError) Is(target error) bool { return target == ErrUnavailable }

// Unwrap implements what errors.Is asks for.
func (e unavailableError) Unwrap() error { return e.error }
