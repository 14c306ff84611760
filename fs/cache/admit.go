package cache

import (
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

const (
	// roomPatience is how long a span waits for others to go before it is not stored.
	roomPatience = 5 * time.Second
	// faultPause is Options.FaultPause where that is 0.
	faultPause = 30 * time.Second
	// pauseTime is for how long the background is told to wait before it asks again.
	pauseTime = time.Second
	// stuckTime is how long nobody waits for room after all that could go has gone.
	stuckTime = 5 * time.Second
)

// errQuota is why a span is not stored: the cache is full of what cannot go.
var errQuota = errors.New("cache quota is reached")

// Guarded is a store's layer that takes a span only when the cache has room for it.
type Guarded struct {
	*store.Layer
	cache *Cache
	// fromStart: the layer goes as a whole, and a span that is not stored costs all of it: none is
	// refused.
	fromStart bool
}

// Guard returns the store's layer as the layers of the table write to it.
func (c *Cache) Guard(l *store.Layer, fromStart bool) Guarded { return Guarded{l, c, fromStart} }

// Put is store.Layer's, and waits for room.
func (g Guarded) Put(i int, data []byte) (stored bool, err error) {
	if g.Present(i) {
		return g.Layer.Put(i, data) // it takes no room
	}
	err = g.cache.write(len(data), g.fromStart, func(counted func()) (err error) {
		stored, err = g.PutAdmitted(i, data, counted)
		return err
	})
	return stored, err
}

// Writer counts what is written to w, a layer on its way, and waits for room for it. A layer that
// comes whole cannot be refused: where nothing can go any more, the quota is exceeded.
func (c *Cache) Writer(w io.Writer) io.Writer { return admitted{c, w} }

type admitted struct {
	cache *Cache
	w     io.Writer
}

// Write implements io.Writer.
func (a admitted) Write(p []byte) (n int, err error) {
	err = a.cache.write(len(p), true, func(func()) error {
		n, err = a.w.Write(p)
		return err
	})
	return n, err
}

// write has something write size bytes when there is room for them; must: also where there is none
// and nothing can go. something may say when the store counts them: what counts twice makes others
// go.
func (c *Cache) write(size int, must bool, something func(counted func()) error) error {
	n := int64(size)
	if err := c.admit(n); err != nil {
		if !must {
			return err
		}
		c.pending.Add(n)
	}
	var once sync.Once
	counted := func() { once.Do(func() { c.pending.Add(-n) }) }
	err := something(counted)
	counted()
	if err != nil {
		c.failed(err)
	}
	return err
}

// admit takes n bytes of the quota. It waits for others to go, and fails where they do not.
func (c *Cache) admit(n int64) error {
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

// room waits until something has gone for n bytes, if anything can before end.
func (c *Cache) room(n int64, end time.Time) bool {
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
	case <-c.ended:
	}
	return false
}

func (c *Cache) ask() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// relieved waits until some of what no container uses has gone from the disk, which is full, as err
// says. It returns whether something has.
func (c *Cache) relieved(err error) bool {
	before := c.evicted.Load()
	limit := time.NewTimer(roomPatience)
	defer limit.Stop()
	select {
	case <-c.failed(err):
	case <-limit.C:
	case <-c.ended:
	}
	return c.evicted.Load() > before
}

// failed stops the background for a while where the disk is at fault: it would take space and time
// from what readers wait for. Where the disk is full, it has some of what no container uses go, and
// closes the channel that it returns when that is over.
func (c *Cache) failed(err error) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !atomicfile.NoRoom(err) && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EROFS) {
		return c.round
	}
	c.faults++
	if now := time.Now(); now.After(c.paused) {
		c.log.Error("the disk does not take what is fetched: nothing is fetched in the background "+
			"for a while, and reads are served from memory",
			"dir", c.root, "pause", c.o.FaultPause, "err", err)
		c.paused = now.Add(c.o.FaultPause)
	}
	c.fault = err
	if atomicfile.NoRoom(err) {
		c.full = true
		c.ask()
	}
	return c.round
}

// Pause says for how long nothing is to be fetched in the background: the disk is at fault, or what
// comes would soon make something else go that was read.
func (c *Cache) Pause() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.paused) {
		return pauseTime
	}
	if c.limit == 0 || c.used() < c.backgroundLimit() {
		return 0
	}
	if now.Sub(c.yielded) > stuckTime {
		c.yielded = now
		c.ask() // what nobody has read for long may go for it
	}
	return pauseTime
}

// backgroundLimit is up to where the background may fill the cache, bytes.
func (c *Cache) backgroundLimit() int64 { return c.limit - c.limit/8 }

// step is how much more than is needed goes at a time, so that not every span waits, bytes.
func (c *Cache) step() int64 { return min(c.limit/16, 256<<20) }

// Fits says whether a complete layer of that many bytes may become one that the kernel reads by
// itself: such a layer goes as a whole, and only when no container uses it. A part of the quota is
// left for what can go.
func (c *Cache) Fits(size int64) bool {
	if c.limit == 0 {
		return true
	}
	for _, v := range c.host.Layers() {
		if v.Store().Sealed() {
			size += v.Store().Size()
		}
	}
	return size <= c.limit/4*3
}

// StateOf is the state of a layer of that many bytes that came whole.
func (c *Cache) StateOf(size int64) store.State {
	if c.Fits(size) {
		return store.Verified
	}
	return store.Complete
}
