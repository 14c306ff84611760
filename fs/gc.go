package fs

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
func (t *Table) Usage(ctx context.Context) ([]Usage, error) {
	all, err := t.store.Layers()
	if err != nil {
		return nil, fmt.Errorf("usage of layers: %w", err)
	}
	inUse, _ := t.cache.look(ctx, 0)
	out := make([]Usage, 0, len(all))
	for _, d := range all {
		u, err := t.usage(d)
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

func (t *Table) usage(d digest.Digest) (u Usage, err error) {
	u.Layer, u.State = d, "damaged"
	l, err := t.store.Layer(d)
	if errors.Is(err, store.ErrDamaged) {
		u.Disk, err = t.store.LayerUsage(d)
		return u, err
	}
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	rec := l.Record()
	u.Refs, u.State, u.Size, u.Unpacked, u.LastUsed = rec.Refs, rec.State.String(), rec.LayerSize, rec.DeviceSize, l.LastUsed()
	_, u.Present = l.Count()
	u.Disk, err = l.DiskUsage()
	return u, err
}

// GiveUp lets all content go of layers that no container uses, and stays able to serve them: they are fetched again when
// somebody reads them.
func (t *Table) GiveUp(ctx context.Context) error {
	l := t.cache.lot(ctx, 0)
	l.layers = slices.DeleteFunc(l.layers, l.inUse)
	for _, v := range l.layers {
		v.rest()
	}
	limit, _ := l.upTo(1 << 62)
	freed, err := l.take(ctx, 1<<62, limit)
	t.cache.evicted.Add(freed)
	if err != nil {
		return fmt.Errorf("give up unused content: %w", err)
	}
	return nil
}
