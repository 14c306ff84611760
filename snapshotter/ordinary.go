package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	continuityfs "github.com/containerd/continuity/fs"
)

// Prepare makes an active snapshot. When the labels name a layer to be unpacked and Layers can
// serve it, there is nothing left to unpack: the committed snapshot is there on return, and the
// error is ErrAlreadyExists.
func (s *Snapshotter) Prepare(
	ctx context.Context, key, parent string, opts ...snapshots.Opt,
) ([]mount.Mount, error) {
	info, err := collectOptions(opts)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	if info.Labels[snapshots.LabelSnapshotRef] != "" {
		err := s.serve(ctx, key, parent, info)
		if !errors.Is(err, errOrdinary) {
			return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
		}
	}
	mounts, err := s.create(ctx, snapshots.KindActive, key, parent, info.Labels)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	return mounts, nil
}

// View makes a read-only snapshot.
func (s *Snapshotter) View(
	ctx context.Context, key, parent string, opts ...snapshots.Opt,
) ([]mount.Mount, error) {
	info, err := collectOptions(opts)
	if err != nil {
		return nil, fmt.Errorf("view snapshot %s: %w", key, err)
	}
	mounts, err := s.create(ctx, snapshots.KindView, key, parent, info.Labels)
	if err != nil {
		return nil, fmt.Errorf("view snapshot %s: %w", key, err)
	}
	return mounts, nil
}

// create makes an active snapshot or a view, and its directories.
func (s *Snapshotter) create(
	ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string,
) (_ []mount.Mount, err error) {
	s.imagesBySnapshot.Delete(key) // it was of another snapshot
	defer func() {
		if err != nil {
			s.imagesBySnapshot.Delete(key)
		}
	}()
	parents, err := s.admit(ctx, key, parent, labels)
	if err != nil {
		return nil, err
	}
	uid, gid, err := upperOwner(labels, parents)
	if err != nil {
		return nil, err
	}
	var (
		snapshot storage.Snapshot
		info     snapshots.Info
		made     string // the directory, under its present name
	)
	defer func() {
		if err != nil && made != "" {
			err = errors.Join(err, os.RemoveAll(made))
		}
	}()
	// The directory is made inside of the transaction because Cleanup, inside of another, takes it
	// for garbage.
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		if made, err = makeDirectory(s.snapshotsDir(), kind, uid, gid); err != nil {
			return err
		}
		if snapshot, err = storage.CreateSnapshot(ctx, kind, key, parent,
			snapshots.WithLabels(labels)); err != nil {
			return err
		}
		if _, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		dir := filepath.Join(s.snapshotsDir(), snapshot.ID)
		if err := os.Rename(made, dir); err != nil {
			return err
		}
		made = dir
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.mounts(snapshot.ID, info, parents), nil
}

// upperOwner returns who owns the upper directory, and so the root of what is mounted: the root
// user of the mapping that the labels ask for, or else the owner of the parent's root. Without
// both, -1 leaves it as it is made.
func upperOwner(labels map[string]string, parents chain) (uid, gid int, err error) {
	if mapped(labels) {
		return mappedRoot(labels)
	}
	if len(parents) == 0 {
		return -1, -1, nil
	}
	fi, err := os.Stat(parents[0].dir)
	if err != nil {
		return 0, 0, fmt.Errorf("find owner of parent: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("find owner of parent: no owner in %T", fi.Sys())
	}
	return int(st.Uid), int(st.Gid), nil
}

// makeDirectory makes a snapshot's directory below dir, under a name for the time being. It returns
// the name with an error too, when there is something to remove.
func makeDirectory(dir string, kind snapshots.Kind, uid, gid int) (string, error) {
	made, err := os.MkdirTemp(dir, "new-")
	if err != nil {
		return "", err
	}
	upper := filepath.Join(made, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return made, err
	}
	// Its mode is the root's of what is mounted: it must not depend on the umask.
	if err := os.Chmod(upper, 0o755); err != nil {
		return made, err
	}
	if err := os.Lchown(upper, uid, gid); err != nil {
		return made, err
	}
	if kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(made, "work"), 0o711); err != nil {
			return made, err
		}
	}
	return made, nil
}

// Commit turns an active snapshot into a committed one.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	info, err := collectOptions(opts)
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	var id string
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	usage, err := continuityfs.DiskUsage(ctx, s.upperDir(id))
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, key, name, snapshots.Usage(usage),
			snapshots.WithLabels(info.Labels), snapshots.WithParent(info.Parent))
		return err
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	s.imagesBySnapshot.Delete(key)
	return nil
}
