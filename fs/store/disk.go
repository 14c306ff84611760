package store

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// readFile reads a whole small file of at most limit bytes.
func readFile(d files.Disk, name string, limit int64) ([]byte, error) {
	f, err := d.Open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: unix.EFBIG}
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && (!errors.Is(err, io.EOF) || n > 0) {
		return nil, err
	}
	return b, nil
}

// writeFile writes a small file so that after a power cut there is either the
// old one or the new one: a temporary beside it, synced, renamed, and the
// folder synced. A temporary that a crash leaves is overwritten by the next
// call; two calls for one name must not run at once.
func writeFile(d files.Disk, dir, name string, content []byte) error {
	tmp := temporary(dir, name)
	if err := writeSynced(d, tmp, content); err != nil {
		return err
	}
	if err := d.Rename(tmp, dir+"/"+name); err != nil {
		return err
	}
	return d.SyncDir(dir)
}

// temporary is where a file is written before it gets its name.
func temporary(dir, name string) string { return dir + "/" + name + ".tmp" }

// writeSynced gives a file, new or not, this content and makes it durable, but not
// yet a new name. Space that the file has is used, and not given up before.
func writeSynced(d files.Disk, name string, content []byte) (err error) {
	f, err := d.Open(name, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		return err
	}
	return f.Sync()
}
