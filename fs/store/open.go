package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/fs/internal/files"
)

// Open opens the store below dir, which is made if it is not there, and removes
// what a crash left in tmp. It is paired with Close.
func Open(dir string) (*Store, error) {
	return OpenOn(dir, files.OS{})
}

// OpenOn is Open with a disk of another kind, which tests have fail.
func OpenOn(dir string, d files.Disk) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		dir:   dir,
		disk:  d,
		log:   slog.Default(),
		wake:  make(chan struct{}, 1),
		hurry: make(chan struct{}, 1),
		open:  map[digest.Digest]*entry{},
		dirty: map[*Layer]struct{}{},
		warm:  map[*Layer]time.Time{},
		usage: usage{layers: map[digest.Digest]*space{}},
	}
	if err := s.makeFolders(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	if err := s.takeLock(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	if err := errors.Join(s.clean(), s.measureAll()); err != nil {
		s.lock.Close()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

// makeFolders makes what is missing of the store's own folders, durably, so that
// no Commit need do it.
func (s *Store) makeFolders() error {
	names := []string{tmpName}
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		names = append(names, layersName+"/"+a.String())
	}
	for _, name := range names {
		if err := s.disk.Mkdir(s.dir + "/" + name); err != nil {
			return err
		}
	}
	return errors.Join(s.disk.SyncDir(s.dir+"/"+layersName), s.disk.SyncDir(s.dir))
}

// takeLock keeps a second process out. The kernel lets go of the lock when the
// process ends, however it ends.
func (s *Store) takeLock() error {
	f, err := os.OpenFile(s.dir+"/"+lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("in use by another process (%s is locked): %w", f.Name(), err)
		}
		return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	s.lock = f
	return nil
}

// clean removes what is left in tmp of layers that came or went; what else may
// lie there is not ours.
func (s *Store) clean() error {
	left, err := os.ReadDir(s.dir + "/" + tmpName)
	if err != nil {
		return err
	}
	for _, e := range left {
		name := e.Name()
		if strings.HasPrefix(name, incomingPrefix) || strings.HasPrefix(name, removedPrefix) {
			if err := s.disk.RemoveAll(s.dir + "/" + tmpName + "/" + name); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureAll measures all layers, of which none is open.
func (s *Store) measureAll() error {
	all, err := s.Layers()
	if err != nil {
		return err
	}
	for _, d := range all {
		if _, err := s.LayerUsage(d); err != nil {
			return err
		}
	}
	return nil
}

// Close makes durable what is present and lets another process open the store.
// Layers are closed before it, and Run has returned.
func (s *Store) Close() error {
	err := s.Flush()
	if err := errors.Join(err, s.lock.Close()); err != nil {
		return fmt.Errorf("close store %s: %w", s.dir, err)
	}
	return nil
}
