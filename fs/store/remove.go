package store

import (
	"io/fs"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// detach moves the layer's folder to trash; from then on its digest is free.
func (s *Store) detach(d digest.Digest, e *entry, trash string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead {
		return fs.ErrNotExist
	}
	l := e.layer
	if l != nil {
		// Nothing may open or write below the folder's name from here on: it
		// can soon be another's.
		l.flushMu.Lock()
		defer l.flushMu.Unlock()
		l.device.mu.Lock()
		defer l.device.mu.Unlock()
		l.direct.mu.Lock()
		defer l.direct.mu.Unlock()
		l.windows.mu.Lock()
		defer l.windows.mu.Unlock()
	}
	dir := s.layerDir(d)
	if err := s.disk.Rename(dir, trash); err != nil {
		return err
	}
	s.usage.forget(d)
	if l != nil {
		l.gone = true
		l.device.removedLocked()
		l.direct.removedLocked()
		l.windows.removedLocked()
		e.dead = true
		s.mu.Lock()
		delete(s.dirty, l)
		delete(s.warm, l)
		delete(s.open, d)
		s.mu.Unlock()
	}
	// Gone for good before the first file in it goes.
	return s.disk.SyncDir(filepath.Dir(dir))
}
