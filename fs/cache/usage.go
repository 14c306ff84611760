package cache

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/store"
)

// Usage is what one layer takes. Sizes are bytes.
type Usage struct {
	Layer    digest.Digest `json:"layer"`
	Refs     []string      `json:"references"` // images that brought it, the latest last
	State    string        `json:"state"`      // "lazy", "complete", "verified", or "damaged"
	Size     int64         `json:"layer_bytes"`
	Unpacked int64         `json:"unpacked_bytes"`
	Present  int64         `json:"present_bytes"` // of Unpacked, on this node
	Disk     int64         `json:"disk_bytes"`    // that its files take, with its index
	InUse    bool          `json:"in_use"`        // by a container
	LastUsed time.Time     `json:"last_used,omitzero"`
}

// Usage returns what all layers on disk take, ordered by image and layer.
func (c *Cache) Usage(ctx context.Context) ([]Usage, error) {
	all, err := c.store.Layers()
	if err != nil {
		return nil, fmt.Errorf("usage of layers: %w", err)
	}
	inUse, _ := c.look(ctx, 0)
	out := make([]Usage, 0, len(all))
	for _, d := range all {
		u, err := c.usageOf(d)
		if errors.Is(err, iofs.ErrNotExist) {
			continue // it has gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("usage of layers: %w", err)
		}
		u.InUse = inUse[d]
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b Usage) int {
		return strings.Compare(a.ref()+" "+a.Layer.String(), b.ref()+" "+b.Layer.String())
	})
	return out, nil
}

func (u *Usage) ref() string {
	if len(u.Refs) == 0 {
		return ""
	}
	return u.Refs[len(u.Refs)-1]
}

func (c *Cache) usageOf(d digest.Digest) (u Usage, err error) {
	u.Layer, u.State = d, "damaged"
	l, err := c.store.Layer(d)
	if errors.Is(err, store.ErrDamaged) {
		u.Disk, err = c.store.LayerUsage(d)
		return u, err
	}
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	rec := l.Record()
	u.Refs, u.State, u.LastUsed = rec.Refs, rec.State.String(), l.LastUsed()
	u.Size, u.Unpacked = rec.LayerSize, rec.DeviceSize
	_, u.Present = l.Count()
	u.Disk, err = l.DiskUsage()
	return u, err
}
