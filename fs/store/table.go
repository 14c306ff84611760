package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// Layer opens a layer that the store has; the error wraps fs.ErrNotExist if it
// has not, and ErrDamaged if its folder is not usable.
func (s *Store) Layer(d digest.Digest) (*Layer, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("open layer %q: %w", d, err)
	}
	for {
		e := s.ref(d)
		l, err := e.load(s, d)
		if l != nil {
			return l, nil
		}
		if err = errors.Join(err, s.unref(d, e)); err != nil {
			return nil, fmt.Errorf("open layer %s: %w", d, err)
		}
		// The layer was removed since ref: look for another of its name.
	}
}

// ref returns the table's entry of d, with one reference more.
func (s *Store) ref(d digest.Digest) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.open[d]
	if e == nil {
		e = &entry{}
		s.open[d] = e
	}
	e.refs++
	return e
}

// load returns the entry's layer, loaded if need be; nil where the entry is dead.
func (e *entry) load(s *Store, d digest.Digest) (*Layer, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead {
		return nil, nil
	}
	if e.layer == nil {
		l, err := loadLayer(s, e, d)
		if err != nil {
			return nil, err
		}
		e.layer = l
	}
	return e.layer, nil
}

// unref takes back one reference. The last one shuts the layer; the entry stays in
// the table until that is done, so that nobody loads the folder while the
// layer's last flush writes to it.
func (s *Store) unref(d digest.Digest, e *entry) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.mu.Lock()
	e.refs--
	last := e.refs == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	// Who refers to the entry from here on waits for its mu, and loads anew.
	var err error
	if e.layer != nil {
		err = e.layer.shut()
		e.layer = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.refs == 0 && s.open[d] == e {
		delete(s.open, d)
	}
	return err
}

// Close gives up one opening of the layer. The last one makes durable what is
// present and closes the files.
func (l *Layer) Close() error { return l.store.unref(l.digest, l.entry) }

// Layers returns the digests of all layers that the store has, in no order.
func (s *Store) Layers() ([]digest.Digest, error) {
	var all []digest.Digest
	root := s.dir + "/" + layersName
	algorithms, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	for _, a := range algorithms {
		entries, err := os.ReadDir(root + "/" + a.Name())
		if err != nil {
			return nil, fmt.Errorf("list layers: %w", err)
		}
		for _, e := range entries {
			d := digest.NewDigestFromEncoded(digest.Algorithm(a.Name()), e.Name())
			if d.Validate() == nil {
				all = append(all, d)
			}
		}
	}
	return all, nil
}

// Remove takes a layer out of the store and frees its space; no error if it is
// not there. Who still has it open can go on reading and writing, but nothing of that is
// kept, and the next Store.Layer does not find it.
func (s *Store) Remove(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("remove layer %q: %w", d, err)
	}
	e := s.ref(d)
	trash := s.tmpDir(removedPrefix, d)
	err := s.detach(d, e, trash)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case err == nil:
		err = s.disk.RemoveAll(trash)
	}
	if err = errors.Join(err, s.unref(d, e)); err != nil {
		return fmt.Errorf("remove layer %s: %w", d, err)
	}
	return nil
}

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
		delete(s.open, d)
		s.mu.Unlock()
		s.forget(l)
	}
	// Gone for good before the first file in it goes.
	return s.disk.SyncDir(filepath.Dir(dir))
}

// LayerUsage is DiskUsage of a layer that is not open, and need not be usable.
func (s *Store) LayerUsage(d digest.Digest) (int64, error) {
	if err := d.Validate(); err != nil {
		return 0, fmt.Errorf("usage of layer %q: %w", d, err)
	}
	return s.usage.measure(s.usage.of(d), s.layerDir(d))
}
