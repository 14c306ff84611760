package store

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/remote/atomicfile"
)

// The reserve is a few files below the root that are of no use but for their space: on a full disk
// they become what is written there, so that what is here can be recorded, and what is to go can
// go. Nobody else gets their space meanwhile.
const (
	reserveName  = "reserve-" // and a number
	reserveFiles = 8
	reserveBytes = 64 << 10 // each
)

func (s *Store) reserve(i int) string { return fmt.Sprintf("%s/%s%d", s.dir, reserveName, i) }

// restock makes what is missing of the reserve, as far as there is room for it.
func (s *Store) restock() {
	for i := range reserveFiles {
		f, err := os.OpenFile(s.reserve(i), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return
		}
		if err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes), f.Close()); err != nil {
			os.Remove(s.reserve(i))
			return
		}
	}
}

// writeFile is the function writeFile, for what has to be written on a full disk as well.
func (s *Store) writeFile(dir, name string, content []byte) error {
	err := writeFile(s.disk, dir, name, content)
	if !atomicfile.NoRoom(err) {
		return err
	}
	for i := range reserveFiles {
		if s.disk.Rename(s.reserve(i), temporary(dir, name)) == nil {
			return writeFile(s.disk, dir, name, content)
		}
	}
	return err
}

// OnFull has relieve asked for room where the disk is too full for what a pull writes, with the
// error that says so. It returns whether something has gone. OnFull is called before the store is
// used.
func (s *Store) OnFull(relieve func(error) bool) { s.relieve = relieve }

// Relieved calls do, and again as long as the disk is too full for it and something goes (OnFull).
func (s *Store) Relieved(do func() error) error {
	for {
		err := do()
		if !atomicfile.NoRoom(err) || s.relieve == nil || !s.relieve(err) {
			return err
		}
	}
}

// WithRoom calls do, and as long as the disk is too full for it gives up a file of the reserve and
// calls it again. It is for what lets content go.
func (s *Store) WithRoom(do func() error) error {
	err := do()
	for i := 0; i < reserveFiles && atomicfile.NoRoom(err); i++ {
		if os.Remove(s.reserve(i)) == nil {
			err = do()
		}
	}
	return err
}
