package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserveName is a file below the root that is of no use but for its space: on a full disk it goes, so that what is there can be
// recorded, and what is to go can go.
const (
	reserveName  = "reserve"
	reserveBytes = 512 << 10
)

// restock makes the reserve if it is not there and there is room for it.
func (s *Store) restock() {
	name := s.dir + "/" + reserveName
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return // it is there; or there is no room
	}
	if err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes), f.Close()); err != nil {
		os.Remove(name)
	}
}

// withReserve runs fn, which writes a few blocks, and once more without the reserve if the disk is full.
func (s *Store) withReserve(fn func() error) error {
	err := fn()
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || os.Remove(s.dir+"/"+reserveName) != nil {
		return err
	}
	return fn()
}
