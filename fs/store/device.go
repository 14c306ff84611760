package store

import (
	"errors"
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
