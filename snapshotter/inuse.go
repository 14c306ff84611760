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
	infos, err := s.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("find layers in use: %w", err)
	}
	byName := make(map[string]*snapshots.Info, len(infos))
	for i := range infos {
		byName[infos[i].Name] = &infos[i]
	}
	used, seen := map[digest.Digest]bool{}, map[string]bool{}
	for _, info := range infos {
		if info.Kind == snapshots.KindCommitted {
			continue
		}
		for name := info.Parent; name != "" && !seen[name]; {
			seen[name] = true
			parent := byName[name]
			if parent == nil {
				break
			}
			r, err := recordOf(*parent)
			if err != nil {
				return nil, fmt.Errorf("find layers in use: %w", err)
			}
			if r != nil {
				used[r.Layer] = true
			}
			name = parent.Parent
		}
	}
	return used, nil
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
