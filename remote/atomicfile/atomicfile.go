// Package atomicfile replaces files: a reader, also one after a power cut, finds the old content or
// the new one, whole. (containerd's pkg/atomicfile does not sync the folder, and gives temporary
// files names by which nobody can find them again.) It knows which errors say that a disk is full.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Leftovers matches (filepath.Match) the temporary files in a folder: those that are being written,
// and those that a crash has left.
const Leftovers = ".*.tmp"

// Replace puts what write writes in the place of the file at path, with that mode. When it returns,
// file and folder are on disk. Where write fails, the file stays as it was.
func Replace(path string, mode os.FileMode, write func(io.Writer) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ReplaceBytes is Replace with content that is there.
func ReplaceBytes(path string, mode os.FileMode, content []byte) error {
	return Replace(path, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// NoRoom says whether err is that the disk, or somebody's part of it, is full.
func NoRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
