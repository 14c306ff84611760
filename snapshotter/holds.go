package snapshotter

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// holds keeps layers from being removed between Layers.Mount and the commit of the snapshot that
// refers to them, and from being mounted while they are removed. A layer is held by any number of
// users or claimed by one remover. The zero value is ready.
type holds struct {
	mu sync.Mutex
	m  map[digest.Digest]*hold
}

type hold struct {
	users    int
	removing chan struct{} // not nil while claimed; closed when the remover is done
}

// acquire adds a user to the layer, after a remover that is at work. Each call that returns nil
// needs a release.
func (h *holds) acquire(ctx context.Context, d digest.Digest) error {
	for {
		h.mu.Lock()
		c := h.m[d]
		if c == nil {
			c = &hold{}
			if h.m == nil {
				h.m = map[digest.Digest]*hold{}
			}
			h.m[d] = c
		}
		if c.removing == nil {
			c.users++
			h.mu.Unlock()
			return nil
		}
		h.mu.Unlock()
		select {
		case <-c.removing:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release takes a user away.
func (h *holds) release(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.m[d]
	if c.users--; c.users == 0 {
		delete(h.m, d)
	}
}

// claim makes the caller the layer's remover, unless it has users or a remover. It never waits.
func (h *holds) claim(d digest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m[d] != nil {
		return false
	}
	if h.m == nil {
		h.m = map[digest.Digest]*hold{}
	}
	h.m[d] = &hold{removing: make(chan struct{})}
	return true
}

// unclaim lets users in again.
func (h *holds) unclaim(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.m[d].removing)
	delete(h.m, d)
}
