package pull

import (
	"context"
	"slices"
	"sync"
)

// cores lets as many indexes be unpacked at a time as there are cores: more take memory, 8 MiB
// each, and no less time. Of those that wait the largest goes first: an image is there when the
// last of its layers is, for which no core is to be left alone.
type cores struct {
	mu      sync.Mutex
	free    int
	waiting []*turn // the largest first
}

type turn struct {
	size int64
	come chan struct{} // closed when the turn has a core
}

// acquire waits for a core, for something of this size. Pair it with release.
func (c *cores) acquire(ctx context.Context, size int64) error {
	c.mu.Lock()
	if c.free > 0 {
		c.free--
		c.mu.Unlock()
		return nil
	}
	t := &turn{size, make(chan struct{})}
	at, _ := slices.BinarySearchFunc(c.waiting, size, func(o *turn, size int64) int {
		if o.size >= size {
			return -1
		}
		return 1
	})
	c.waiting = slices.Insert(c.waiting, at, t)
	c.mu.Unlock()
	select {
	case <-t.come:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	i := slices.Index(c.waiting, t)
	if i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
	c.mu.Unlock()
	if i < 0 {
		c.release()
	}
	return ctx.Err()
}

func (c *cores) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 {
		c.free++
		return
	}
	close(c.waiting[0].come)
	c.waiting = slices.Delete(c.waiting, 0, 1)
}
