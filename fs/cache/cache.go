// Package cache keeps what layers take on disk within its bounds, and right.
//
// # The data's way
//
// Spans are admitted before they are written, and wait while others go. The store counts what lies
// on disk; the cache adds what was admitted and is not written yet. What does not fit is refused:
// a layer serves it from memory, so that a quota costs speed and never an answer. A layer that
// comes whole is not refused.
//
//	fs/layer ── Put ───────▶ Guarded ── admit ─▶ fs/store
//	download ── Write ─────▶ Writer ─── admit ─▶ fs/store
//	                                      │ no room
//	                                      ▼
//	                         Run: the coldest spans go, or whole layers
//
// Cold is what no container uses, and then what was read longest ago (warmth). A sealed layer, and
// one whose spans are index.FromStart, goes as a whole or not at all. Pause stops fills at seven
// eighths of the quota.
//
// What lies on disk is compared with its digests by Verify, for somebody who asks, and by Run as
// often as Options.Scrub says. What is wrong is thrown away, or put right where the kernel may be
// reading it.
//
// # Concurrency
//
// All methods may run in parallel. One goroutine evicts, one scrubs: both are Run's. No lock is
// held over disk, network or a method of a Layer.
package cache

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
)

// Options say how much of the disk the layers may take, and how they are looked after. The zero
// value: as much as there is.
type Options struct {
	// Size is how many bytes the layers may take on disk, and Percent how much of their filesystem;
	// the smaller one counts, 0 is no limit.
	Size    int64
	Percent int
	// FaultPause is how long nothing is fetched in the background after the disk did not take what
	// was; 0: 30 s.
	FaultPause time.Duration
	// Scrub is how often all that is on disk is read and compared with its digests; 0: never.
	Scrub time.Duration
	// InUse returns the layers that containers use: of others, content goes first. nil: all are
	// taken to be.
	InUse func(ctx context.Context) (map[digest.Digest]bool, error)
}

// Layer is a layer that is open. Its methods may run in parallel, also with its end.
type Layer interface {
	Store() *store.Layer         // its files
	Data() *layer.Layer          // its bytes
	Spans() (index.Spans, error) // of its index
	// MakeLazy takes the content of a layer that goes as a whole, which stays mounted at any
	// moment, and returns how many bytes went. 0 without an error: it cannot go now.
	MakeLazy(ctx context.Context) (int64, error)
	// Rest ends what is fetched of the layer in the background, until somebody reads it.
	Rest()
	// Refill has what was thrown away fetched again, if the layer had been filled.
	Refill()
}

// Host has the layers.
type Host interface {
	// Layers returns the layers that are open.
	Layers() []Layer
	// Fixed says whether this kernel keeps a mount in its place as long as it is used, so that no
	// layer that it reads by itself can go.
	Fixed() bool
}

// Cache is what the layers of one store take on disk. New makes it.
type Cache struct {
	host  Host
	o     Options
	root  string
	log   *slog.Logger
	ended <-chan struct{} // closed when nobody makes room any more
	store *store.Store
	limit int64 // bytes; 0: none

	wake chan struct{} // a token: there is not enough room

	pending atomic.Int64 // bytes that are admitted and not yet written

	evicted, refused, wrong atomic.Int64 // bytes, bytes, spans

	mu        sync.Mutex
	round     chan struct{} // closed when the next run of the evictor has ended
	need      int64         // bytes that are waited for since the evictor began to run last
	stuck     time.Time     // until then there is nothing that could go
	paused    time.Time     // until then nothing is fetched in the background
	fault     error         // why
	faults    int64
	full      bool // the disk was, since the evictor began to run last
	inUse     map[digest.Digest]bool
	looked    time.Time // when inUse was so
	yielded   time.Time // when the background asked for room last
	lastScrub time.Time
}

// New returns the cache of a store in a folder of the filesystem whose size counts. Nobody waits
// for room after ctx has ended.
func New(
	ctx context.Context, host Host, s *store.Store, root string, o Options, log *slog.Logger,
) (*Cache, error) {
	c := &Cache{
		host: host, o: o, root: root, log: log, store: s, limit: o.Size, ended: ctx.Done(),
		wake: make(chan struct{}, 1), round: make(chan struct{}),
	}
	s.OnFull(c.relieved)
	if o.FaultPause == 0 {
		c.o.FaultPause = faultPause
	}
	if p := o.Percent; p > 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil {
			return nil, fmt.Errorf("size of the filesystem of %s: %w", root, err)
		}
		part := int64(st.Blocks) / 100 * st.Bsize * int64(p)
		if c.limit == 0 || part < c.limit {
			c.limit = part
		}
	}
	return c, nil
}

// Run makes room whenever it is asked for, and scrubs, until ctx ends.
func (c *Cache) Run(ctx context.Context) {
	var scrubbing sync.WaitGroup
	scrubbing.Go(func() { c.scrub(ctx) })
	c.evictor(ctx)
	scrubbing.Wait()
}

// used is the bytes on disk, and those admitted.
func (c *Cache) used() int64 { return c.store.Used() + c.pending.Load() }

// Status is how the cache is doing. Sizes are bytes.
type Status struct {
	Used    int64 `json:"used_bytes"`    // on disk
	Quota   int64 `json:"quota_bytes"`   // 0: none
	Evicted int64 `json:"evicted_bytes"` // since the start, as all that follows
	Refused int64 `json:"refused_bytes"` // served from memory because nothing could go for them
	Corrupt int64 `json:"corrupt_spans"` // on disk, found wrong by a check or unreadable
	Faults  int64 `json:"disk_faults"`   // writes that the disk refused
	// Fault says why nothing is fetched in the background, and until when.
	Fault      string    `json:"fault,omitempty"`
	PauseUntil time.Time `json:"pause_until,omitzero"`
	// Full says that nothing is fetched in the background because the quota is reached.
	Full      bool      `json:"full"`
	LastScrub time.Time `json:"last_scrub,omitzero"` // when the last one ended
}

// Unreadable counts a span that a layer could not read though it is on disk.
func (c *Cache) Unreadable() { c.wrong.Add(1) }

// Status returns how the cache is doing.
func (c *Cache) Status() Status {
	s := Status{
		Used: c.used(), Quota: c.limit, Evicted: c.evicted.Load(), Refused: c.refused.Load(),
		Corrupt: c.wrong.Load(), Full: c.limit > 0 && c.used() >= c.backgroundLimit(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Faults, s.LastScrub = c.faults, c.lastScrub
	if time.Now().Before(c.paused) {
		s.Fault, s.PauseUntil = c.fault.Error(), c.paused
	}
	return s
}
