package cache

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// scrubShare is the part of the time in which a scrub works: it rests for the others.
	scrubShare = 10
	scrubTick  = time.Minute
	idleClass  = 3 << 13 // ioprio_set(2): IOPRIO_CLASS_IDLE
)

// scrub checks all layers as often as the configuration says, one after another and slowly, until
// ctx ends.
func (c *Cache) scrub(ctx context.Context) {
	if c.o.Scrub == 0 {
		return
	}
	// The thread's priority on the disk is changed, so that it is not given back. (1 is
	// IOPRIO_WHO_PROCESS, of this thread; where that fails, a scrub is slow all the same.)
	runtime.LockOSThread()
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, 1, 0, idleClass)
	tick := time.NewTicker(min(scrubTick, max(c.o.Scrub/10, time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, v := range c.host.Layers() {
			if time.Since(v.Store().LastChecked()) < c.o.Scrub || ctx.Err() != nil {
				continue
			}
			out, err := c.verify(ctx, v, func(worked time.Duration) {
				select {
				case <-time.After((scrubShare - 1) * worked):
				case <-ctx.Done():
				}
			})
			if err != nil && ctx.Err() == nil {
				c.log.Error("layer on disk is wrong", "layer", out.Layer, "err", err)
				v.Store().Checked() // not again at once
			}
			c.log.Debug("layer checked", "layer", out.Layer, "spans", out.Spans, "wrong", out.Wrong)
			c.mu.Lock()
			c.lastScrub = time.Now()
			c.mu.Unlock()
		}
	}
}
