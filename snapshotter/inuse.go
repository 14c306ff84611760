package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
)

// LayersInUse returns the layers that containers can be using: those under an active snapshot or a
// view. Others are only kept for containers to come.
func (s *Snapshotter) LayersInUse(ctx context.Context) (map[digest.Digest]bool, error) {
	used, seen := map[digest.Digest]bool{}, map[string]bool{}
	return used, s.eachUse(ctx, func(_, name string, r *record) (further bool) {
		if seen[name] {
			return false
		}
		seen[name] = true
		if r != nil {
			used[r.Layer] = true
		}
		return true
	})
}

// Users returns the keys of active snapshots and views by the reference of the image that brought
// the topmost served layer under them.
func (s *Snapshotter) Users(ctx context.Context) (map[string][]string, error) {
	users := map[string][]string{}
	return users, s.eachUse(ctx, func(key, _ string, r *record) (further bool) {
		if r != nil {
			users[r.Ref] = append(users[r.Ref], key)
		}
		return r == nil
	})
}

// eachUse calls fn for the snapshots under each active snapshot or view, topmost first, with their
// records, as long as it says so.
func (s *Snapshotter) eachUse(
	ctx context.Context, fn func(key, name string, r *record) (further bool),
) error {
	infos, err := s.list(ctx)
	if err != nil {
		return fmt.Errorf("find layers in use: %w", err)
	}
	byName := make(map[string]*snapshots.Info, len(infos))
	for i := range infos {
		byName[infos[i].Name] = &infos[i]
	}
	for _, info := range infos {
		if info.Kind == snapshots.KindCommitted {
			continue
		}
		for parent := byName[info.Parent]; parent != nil; parent = byName[parent.Parent] {
			r, err := recordOf(*parent)
			if err != nil {
				return fmt.Errorf("find layers in use: %w", err)
			}
			if !fn(info.Name, parent.Name, r) {
				break
			}
		}
	}
	return nil
}

// LayersUnder returns the layers that Layers serves under a snapshot, or at it, topmost first.
func (s *Snapshotter) LayersUnder(
	ctx context.Context, name string,
) (layers []digest.Digest, err error) {
	c, err := s.viewChain(ctx, name)
	for _, l := range c {
		if l.served != nil {
			layers = append(layers, l.served.Layer)
		}
	}
	return layers, err
}
