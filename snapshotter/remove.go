package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
)

// Remove removes a snapshot that has no children. What it took is freed by Cleanup, which
// containerd calls after each garbage collection. An error means that the snapshot is still there.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		id, _, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	s.restored.forget(id)
	s.imagesBySnapshot.Delete(key)
	return nil
}

// Cleanup frees what removed snapshots took, interrupted calls included: directories and layers.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	var garbage []string
	// A write transaction, because create makes its directory in one.
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		garbage, err = s.garbage(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	s.removeDirectories(ctx, garbage)
	if err := s.collectLayers(ctx, nil); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// garbage returns the directories that belong to no snapshot. Needs a write transaction.
func (s *Snapshotter) garbage(ctx context.Context) ([]string, error) {
	ids, err := storage.IDMap(ctx)
	if err != nil && !errdefs.IsNotFound(err) { // before the first snapshot the database is empty
		return nil, err
	}
	entries, err := os.ReadDir(s.snapshotsDir())
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if _, ok := ids[e.Name()]; !ok {
			dirs = append(dirs, filepath.Join(s.snapshotsDir(), e.Name()))
		}
	}
	return s.unmounted(dirs)
}

// unmounted leaves out those of the directories that an overlay is mounted on: the container of a
// snapshot that is gone, by force or with a damaged database, may still run.
func (s *Snapshotter) unmounted(dirs []string) ([]string, error) {
	if len(dirs) == 0 {
		return nil, nil
	}
	overlays, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	mounted := map[string]bool{}
	for _, m := range overlays {
		for _, option := range strings.Split(m.VFSOptions, ",") {
			if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
				mounted[filepath.Dir(upper)] = true
			}
		}
	}
	return slices.DeleteFunc(dirs, func(dir string) bool { return mounted[dir] }), nil
}

// removeDirectories removes what it can; the rest is found again by the next Cleanup.
func (s *Snapshotter) removeDirectories(ctx context.Context, dirs []string) {
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			s.log.WarnContext(ctx, "directory of a removed snapshot not removed", "dir", dir,
				"err", err)
		}
	}
}

// collectLayers gives up those of the layers that no snapshot refers to and nobody is mounting. Nil
// means all layers that Layers may know.
func (s *Snapshotter) collectLayers(ctx context.Context, layers []digest.Digest) error {
	if layers == nil && s.MayHaveForgotten() {
		return nil
	}
	if layers == nil {
		var err error
		if layers, err = s.markedLayers(); err != nil {
			return fmt.Errorf("find layers to remove: %w", err)
		}
	}
	used, err := s.usedLayers(ctx)
	if err != nil {
		return fmt.Errorf("find layers to remove: %w", err)
	}
	var claimed []digest.Digest
	defer func() {
		for _, d := range claimed {
			s.uses.endRemoval(d)
		}
	}()
	for _, d := range layers {
		if !used[d] && s.uses.beginRemoval(d) {
			claimed = append(claimed, d)
		}
	}
	if len(claimed) == 0 {
		return nil
	}
	// Whoever mounts a layer holds it until the snapshot that refers to it is committed. Between
	// the first look and the claim that may have come to an end; from now on it cannot begin.
	if used, err = s.usedLayers(ctx); err != nil {
		return fmt.Errorf("find layers to remove: %w", err)
	}
	var errs []error
	for _, d := range claimed {
		if used[d] {
			continue
		}
		if err := s.removeLayer(ctx, d); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// usedLayers returns the layers that snapshots refer to.
func (s *Snapshotter) usedLayers(ctx context.Context) (map[digest.Digest]bool, error) {
	infos, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	used := map[digest.Digest]bool{}
	for _, info := range infos {
		r, err := recordOf(info)
		if err != nil {
			return nil, err
		}
		if r != nil {
			used[r.Layer] = true
			for _, d := range r.Former {
				used[d] = true
			}
		}
	}
	return used, nil
}

// removeLayer gives up a claimed layer, and then forgets about it.
func (s *Snapshotter) removeLayer(ctx context.Context, d digest.Digest) error {
	if err := s.layers.Remove(ctx, d); err != nil {
		return fmt.Errorf("remove layer %s: %w", d, err)
	}
	if err := os.Remove(filepath.Join(s.servedDir(), d.String())); err != nil &&
		!errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove layer %s: %w", d, err)
	}
	s.counters.removed.Add(1)
	return nil
}
