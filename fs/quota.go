package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/store"
)

// CacheOptions say how much of the disk the layers may take, and how they are looked after. The zero value: as much as there
// is.
type CacheOptions struct {
	// Size is how many bytes the layers may take on disk, and Percent how much of their filesystem; the smaller
	// one counts, 0 is no limit.
	Size    int64
	Percent int
	// Scrub is how often all that is on disk is read and compared with its digests; 0: never.
	Scrub time.Duration
	// InUse returns the layers that containers use: of others, content goes first. nil: all are taken to be.
	InUse func(ctx context.Context) (map[digest.Digest]bool, error)
}

const (
	// roomPatience is how long a span waits for others to go before it is not stored.
	roomPatience = 5 * time.Second
	// faultPause is how long nothing is fetched in the background after the disk did not take a span.
	faultPause = 30 * time.Second
	// holdTime is for how long the background is told to wait before it asks again.
	holdTime = time.Second
	// stuckTime is how long nobody waits for room after all that could go has gone.
	stuckTime = 5 * time.Second
	// usedTick is how often it is noted which layers are in use.
	usedTick = time.Minute
)

// errQuota is why a span is not stored: the cache is full of what cannot go.
var errQuota = errors.New("cache quota is reached")

// cache keeps what the layers take on disk within its bounds. Readers are never refused anything: a span that is not stored is
// served from memory.
//
// Spans are admitted before they are written, and wait while others go. The store counts what lies on
// disk; what was admitted and is not written yet is counted here.
type cache struct {
	t     *Table // set before anything is read
	o     CacheOptions
	store *store.Store
	limit int64 // bytes; 0: none

	wake chan struct{} // a token: there is not enough room

	pending atomic.Int64 // bytes that are admitted and not yet written

	evicted, refused, wrong atomic.Int64 // bytes, bytes, spans
	solid                   atomic.Bool  // complete layers cannot be made lazy on this kernel

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

func newCache(s *store.Store, o Options) (*cache, error) {
	c := &cache{o: o.Cache, store: s, limit: o.Cache.Size, wake: make(chan struct{}, 1), round: make(chan struct{})}
	if p := o.Cache.Percent; p > 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(o.Root, &st); err != nil {
			return nil, fmt.Errorf("size of the filesystem of %s: %w", o.Root, err)
		}
		part := int64(st.Blocks) / 100 * st.Bsize * int64(p)
		if c.limit == 0 || part < c.limit {
			c.limit = part
		}
	}
	return c, nil
}

// used is the bytes on disk, and those admitted.
func (c *cache) used() int64 { return c.store.Used() + c.pending.Load() }

// guarded is a store's layer that takes a span only when the cache has room for it.
type guarded struct {
	*store.Layer
	cache *cache
	// whole: the layer goes as a whole, and a span that is not stored costs all of it: none is
	// refused.
	whole bool
}

// guard returns the store's layer as the layers of the table write to it.
func (c *cache) guard(l *store.Layer, whole bool) guarded { return guarded{l, c, whole} }

// WriteSpan is store.Layer's, and waits for room.
func (g guarded) WriteSpan(i int, off int64, data []byte) error {
	c, n := g.cache, int64(len(data))
	if err := c.admit(n); err != nil && !g.whole {
		return err
	} else if err != nil {
		c.exceed(n)
	}
	err := g.Layer.WriteSpan(i, off, data)
	c.pending.Add(-n)
	if err != nil {
		c.failed(err)
	}
	return err
}

// admit takes n bytes of the quota. It waits for others to go, and fails where they do not.
func (c *cache) admit(n int64) error {
	for end := (time.Time{}); ; {
		c.pending.Add(n)
		if c.used() <= c.limit || c.limit == 0 {
			return nil
		}
		c.pending.Add(-n)
		if end.IsZero() {
			end = time.Now().Add(roomPatience)
		}
		if !c.room(n, end) {
			c.refused.Add(n)
			return errQuota
		}
	}
}

// exceed counts n bytes that are written although there is no room.
func (c *cache) exceed(n int64) { c.pending.Add(n) }

// room waits until something has gone for n bytes, if anything can before end.
func (c *cache) room(n int64, end time.Time) bool {
	c.mu.Lock()
	if time.Now().Before(c.stuck) {
		c.mu.Unlock()
		return false
	}
	round := c.round
	c.need += n
	c.mu.Unlock()
	c.ask()
	limit := time.NewTimer(time.Until(end))
	defer limit.Stop()
	select {
	case <-round:
		return true
	case <-limit.C:
	case <-c.t.ctx.Done():
	}
	return false
}

func (c *cache) ask() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// failed stops the background for a while where the disk is at fault: it would take space and time from what readers wait for.
func (c *cache) failed(err error) {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EROFS) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults++
	if now := time.Now(); now.After(c.paused) {
		c.t.log.Error("the disk does not take what is fetched: nothing is fetched in the background for a while, and reads are served from memory",
			"dir", c.t.o.Root, "pause", faultPause, "err", err)
		c.paused = now.Add(faultPause)
	}
	c.fault = err
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		c.full = true
		c.ask()
	}
}

// hold says for how long nothing is to be fetched in the background: the disk is at fault, or what comes would soon make something
// else go that was read.
func (c *cache) hold() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.paused) {
		return holdTime
	}
	if c.limit == 0 || c.used() < c.backgroundLimit() {
		return 0
	}
	if now.Sub(c.yielded) > stuckTime {
		c.yielded = now
		c.ask() // what nobody has read for long may go for it
	}
	return holdTime
}

// backgroundLimit is up to where the background may fill the cache, bytes.
func (c *cache) backgroundLimit() int64 { return c.limit - c.limit/8 }

// step is how much more than is needed goes at a time, so that not every span waits, bytes.
func (c *cache) step() int64 { return min(c.limit/16, 256<<20) }

// keeps says whether a complete layer of that many bytes may become one that the kernel reads by itself: such a layer goes
// as a whole, and only when no container uses it. A part of the quota is left for what can go.
func (c *cache) keeps(size int64) bool {
	if c.limit == 0 {
		return true
	}
	for _, v := range c.t.opened() {
		if rec := v.store.Record(); rec.State == store.Verified {
			size += rec.DeviceSize
		}
	}
	return size <= c.limit/4*3
}

// whole is the state of a layer that came whole.
func (c *cache) whole(size int64) store.State {
	if c.keeps(size) {
		return store.Verified
	}
	return store.Complete
}

// writer counts what is written to w, a layer on its way, and waits for room for it. A layer that comes whole
// cannot be refused: where nothing can go any more, the quota is exceeded.
func (c *cache) writer(w io.Writer) io.Writer { return &admitted{c, w} }

type admitted struct {
	cache *cache
	w     io.Writer
}

// Write implements io.Writer.
func (a *admitted) Write(p []byte) (int, error) {
	c := a.cache
	n := int64(len(p))
	if c.admit(n) != nil {
		c.exceed(n)
	}
	done, err := a.w.Write(p)
	c.pending.Add(-n)
	if err != nil {
		c.failed(err)
	}
	return done, err
}

// run makes room whenever it is asked for, until ctx ends.
func (c *cache) run(ctx context.Context) {
	tick := time.NewTicker(usedTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.look(ctx, 0)
			for _, v := range c.t.opened() {
				v.store.SaveReads()
				v.store.Measure() // what was put beside its files too
			}
			continue
		case <-c.wake:
		}
		c.mu.Lock()
		round, need, full := c.round, c.need, c.full
		c.round, c.need, c.full = make(chan struct{}), 0, false
		c.mu.Unlock()
		if full {
			c.relieve(ctx)
		}
		c.makeRoom(ctx, need)
		close(round)
	}
}

// look notes which layers are in use, and returns them, as they were no longer ago than age; false where that is not known.
func (c *cache) look(ctx context.Context, age time.Duration) (map[digest.Digest]bool, bool) {
	if c.o.InUse == nil {
		return nil, false
	}
	c.mu.Lock()
	used, looked := c.inUse, c.looked
	c.mu.Unlock()
	if time.Since(looked) < age {
		return used, true
	}
	used, err := c.o.InUse(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.t.log.Warn("it is not known which layers are in use: all are taken to be", "err", err)
		}
		return nil, false
	}
	for _, v := range c.t.opened() {
		if used[v.digest] {
			v.store.Used()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inUse, c.looked = used, time.Now()
	return used, true
}

// CacheStatus is how the cache is doing. Sizes are bytes.
type CacheStatus struct {
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

// Cache returns how the cache is doing.
func (t *Table) Cache() CacheStatus {
	c := t.cache
	s := CacheStatus{
		Used: c.used(), Quota: c.limit, Evicted: c.evicted.Load(), Refused: c.refused.Load(), Corrupt: c.wrong.Load(),
		Full: c.limit > 0 && c.used() >= c.backgroundLimit(),
	}
	for _, v := range t.opened() {
		s.Corrupt += v.data.Stats().Unreadable
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Faults, s.LastScrub = c.faults, c.lastScrub
	if time.Now().Before(c.paused) {
		s.Fault, s.PauseUntil = c.fault.Error(), c.paused
	}
	return s
}
