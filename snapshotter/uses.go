package snapshotter

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// layerUses keeps layers from being removed between Layers.Mount and the commit of the snapshot that
// refers to them, and from being mounted while they are removed. A layer is held by any number of
// users, or by one remover. The zero value is ready.
type layerUses struct {
	mu sync.Mutex
	m  map[digest.Digest]*layerUse
}

type layerUse struct {
	users    int
	removing chan struct{} // not nil while it is removed; closed when the remover is done
}

// acquire adds a user to the layer, after a remover that is at work. Each call that returns nil
// needs a release.
func (u *layerUses) acquire(ctx context.Context, d digest.Digest) error {
	for {
		u.mu.Lock()
		c := u.m[d]
		if c == nil {
			c = &layerUse{}
			if u.m == nil {
				u.m = map[digest.Digest]*layerUse{}
			}
			u.m[d] = c
		}
		if c.removing == nil {
			c.users++
			u.mu.Unlock()
			return nil
		}
		u.mu.Unlock()
		select {
		case <-c.removing:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release takes a user away.
func (u *layerUses) release(d digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.m[d]
	if c.users--; c.users == 0 {
		delete(u.m, d)
	}
}

// beginRemoval makes the caller the layer's remover, unless it has users or a remover. It never waits.
func (u *layerUses) beginRemoval(d digest.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.m[d] != nil {
		return false
	}
	if u.m == nil {
		u.m = map[digest.Digest]*layerUse{}
	}
	u.m[d] = &layerUse{removing: make(chan struct{})}
	return true
}

// endRemoval lets users in again.
func (u *layerUses) endRemoval(d digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.m[d].removing)
	delete(u.m, d)
}
