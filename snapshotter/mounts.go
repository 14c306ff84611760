package snapshotter

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// Mounts returns the mounts of an active snapshot or a view. They are a function of what is
// committed, and do not change, but for a layer that was disproved. It waits for the layers that
// the snapshot shows, when they are not mounted again yet after a restart.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var (
		snapshot storage.Snapshot
		info     snapshots.Info
	)
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snapshot, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	parents, err := s.admit(ctx, key, info.Parent, info.Labels)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	return s.mounts(snapshot.ID, info, parents), nil
}

// mounts returns the mounts of the active snapshot or view with this number, on these parents. The
// order of the options is that of containerd's overlay snapshotter.
func (s *Snapshotter) mounts(id string, info snapshots.Info, parents chain) []mount.Mount {
	var options []string
	if s.remapIDs {
		// containerd's mount package turns these into idmapped mounts of the lower directories.
		if v, ok := info.Labels[snapshots.LabelSnapshotUIDMapping]; ok {
			options = append(options, "uidmap="+v)
		}
		if v, ok := info.Labels[snapshots.LabelSnapshotGIDMapping]; ok {
			options = append(options, "gidmap="+v)
		}
	}
	view := info.Kind == snapshots.KindView
	lower := parents.lower()
	workDevice, viewDevice := s.workDevice, s.viewDevice
	if !parents.served() {
		workDevice, viewDevice = "", ""
	}
	switch {
	case len(lower) == 0 && view: // overlayfs needs a lower directory
		return bind(s.upperDir(id), append(options, "ro"))
	case len(lower) == 0:
		return bind(s.upperDir(id), append(options, "rw"))
	case len(lower) == 1 && view: // and, without an upper one, two of them
		return bind(lower[0], append(options, "ro"))
	case !view:
		options = append(options, "workdir="+s.workDir(id)+workDevice, "upperdir="+s.upperDir(id))
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	options = append(options, s.mountOptions...)
	if view && viewDevice != "" {
		options = append(options, viewDevice)
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

// bind returns a bind mount, with the mounts below it.
func bind(dir string, options []string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: append(options, "rbind")}}
}
