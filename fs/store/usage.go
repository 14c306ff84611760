package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// DiskUsage returns the bytes that the layer's files take on disk, holes left
// out.
func (l *Layer) DiskUsage() (int64, error) { return diskUsage(l.dir) }

// DiskUsage returns the bytes that all layers take on disk, holes left out, with those on their way in.
func (s *Store) DiskUsage() (int64, error) {
	all, err := s.Layers()
	if err != nil {
		return 0, err
	}
	dirs := make([]string, 0, len(all))
	for _, d := range all {
		dirs = append(dirs, s.layerDir(d))
	}
	coming, err := os.ReadDir(s.dir + "/" + tmpName)
	if err != nil {
		return 0, err
	}
	for _, e := range coming {
		dirs = append(dirs, s.dir+"/"+tmpName+"/"+e.Name())
	}
	var total int64
	for _, dir := range dirs {
		n, err := diskUsage(dir)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// LayerUsage is DiskUsage of one layer, which need not be usable.
func (s *Store) LayerUsage(d digest.Digest) (int64, error) {
	if err := d.Validate(); err != nil {
		return 0, fmt.Errorf("usage of layer %q: %w", d, err)
	}
	return diskUsage(s.layerDir(d))
}

// diskUsage adds up what the files in a folder take; a folder that is gone takes nothing.
func diskUsage(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var total int64
	for _, e := range entries {
		var st unix.Stat_t
		err := unix.Lstat(dir+"/"+e.Name(), &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, &fs.PathError{Op: "lstat", Path: dir + "/" + e.Name(), Err: err}
		}
		total += st.Blocks * 512 // st_blocks counts 512 bytes whatever the file system's block
	}
	return total, nil
}
