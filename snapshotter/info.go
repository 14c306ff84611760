package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	continuityfs "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
)

// Stat returns what is known of a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("stat snapshot %s: %w", key, err)
	}
	return info, nil
}

// Update changes the labels of a snapshot, but for the private one.
func (s *Snapshotter) Update(
	ctx context.Context, info snapshots.Info, fieldpaths ...string,
) (updated snapshots.Info, err error) {
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		info.Labels = keepRecord(info.Labels, old.Labels)
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %s: %w", info.Name, err)
	}
	return updated, nil
}

// keepRecord returns the labels with the private label as it is in old.
func keepRecord(labels, old map[string]string) map[string]string {
	kept := make(map[string]string, len(labels)+1)
	for k, v := range labels {
		if k != recordLabel {
			kept[k] = v
		}
	}
	if v, ok := old[recordLabel]; ok {
		kept[recordLabel] = v
	}
	return kept
}

// Usage returns what a snapshot takes, without its parents. It counts an active snapshot's files,
// which may take some time. Of a served layer it is the size of its unpacked content, however
// little of that is on this node.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var (
		id   string
		info snapshots.Info
	)
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	if info.Kind != snapshots.KindActive {
		return usage, nil
	}
	du, err := continuityfs.DiskUsage(ctx, s.upperDir(id))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	return snapshots.Usage(du), nil
}

// Walk calls fn for each snapshot that matches one of the filters, without BuildKit's. It reads all
// of them first: fn may take its time and call other methods.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.walk(ctx, fn, false, filters...)
}

// walk is Walk for the snapshots that are BuildKit's, or for those that are not.
func (s *Snapshotter) walk(
	ctx context.Context, fn snapshots.WalkFunc, built bool, filters ...string,
) error {
	infos, err := s.list(ctx, filters...)
	if err != nil {
		return fmt.Errorf("walk snapshots: %w", err)
	}
	for _, info := range infos {
		if (prefixOf(info.Name) != "") != built {
			continue
		}
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// list returns the snapshots that match one of the filters, by name.
func (s *Snapshotter) list(ctx context.Context, filters ...string) ([]snapshots.Info, error) {
	var infos []snapshots.Info
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			infos = append(infos, info)
			return nil
		}, filters...)
	})
	if errdefs.IsNotFound(err) { // before the first snapshot the database is empty
		return nil, nil
	}
	return infos, err
}
