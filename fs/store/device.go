package store

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// deviceLength returns the length of the device file, -1 if there is none, and whether it is
// sealed.
func (l *Layer) deviceLength() (n int64, sealed bool, err error) {
	f, err := l.store.disk.Open(l.dir+"/"+deviceName, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	n, err = f.Size()
	if err == nil {
		sealed, err = f.Sealed()
	}
	return n, sealed, errors.Join(err, f.Close())
}

// makeDevice makes a device file without content, size bytes long.
func makeDevice(d files.Disk, name string, size int64) error {
	f, err := d.Open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// readAt reads device bytes as io.ReaderAt. It does not look at the presence map: only ranges whose
// spans are present hold the layer's bytes.
func (l *Layer) readAt(p []byte, off int64) (int, error) {
	if len(p) >= directFrom {
		if !l.warm.Load() && l.readDirect(p, off) {
			return len(p), nil
		}
		l.warmed()
	}
	return l.readBuffered(p, off)
}

// readBuffered reads through the page cache.
func (l *Layer) readBuffered(p []byte, off int64) (int, error) {
	f, err := l.device.get()
	if err != nil {
		return 0, err
	}
	n, err := f.ReadAt(p, off)
	l.store.faults.note(err)
	return n, err
}

// short is the error of a read of p that brought n bytes; nil: all.
func short(p []byte, n int, err error) error {
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
