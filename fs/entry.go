package fs

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// tableEntry is the place of one layer in the table: opened by the first who needs it.
type tableEntry struct {
	open  func() (*openLayer, error)
	ready atomic.Bool // open has returned
}

func (s *tableEntry) close() error {
	if v, err := s.open(); err == nil {
		return v.close()
	}
	return nil // it never was there
}

func (s *tableEntry) leave() error {
	if v, err := s.open(); err == nil {
		return v.leave()
	}
	return nil
}

// layer returns the open layer, from the table, the store or the registry.
func (t *Table) layer(ctx context.Context, l Layer, below []Below) (*openLayer, error) {
	for {
		v, err := t.stored(l)
		if !errors.Is(err, os.ErrNotExist) {
			return v, err
		}
		if err := t.pulls.Bring(ctx, requestOf(l, below)); err != nil {
			return nil, err
		}
	}
}

// stored returns the layer, open, if the store has it, else an error that wraps os.ErrNotExist.
func (t *Table) stored(l Layer) (*openLayer, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, errors.New("micad is stopping")
	}
	s := t.entries[l.Digest]
	if s == nil {
		s = &tableEntry{}
		s.open = sync.OnceValues(func() (*openLayer, error) {
			defer s.ready.Store(true)
			v, err := t.openStored(l.Digest)
			if err == nil {
				v.adoptHeld(t.ctx)
			}
			return v, err
		})
		t.entries[l.Digest] = s
	}
	t.mu.Unlock()
	v, err := s.open()
	if err != nil {
		t.mu.Lock()
		if t.entries[l.Digest] == s {
			delete(t.entries, l.Digest)
		}
		t.mu.Unlock()
		return nil, err
	}
	return v, v.addRef(l.Ref)
}

// openNow returns a layer of the table if it is open, else nil.
func (t *Table) openNow(d digest.Digest) *openLayer {
	t.mu.Lock()
	s := t.entries[d]
	t.mu.Unlock()
	if s == nil || !s.ready.Load() {
		return nil
	}
	v, err := s.open()
	if err != nil {
		return nil
	}
	return v
}

// opened returns the layers that are open.
func (t *Table) opened() []*openLayer {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*openLayer
	for _, s := range t.entries {
		if s.ready.Load() {
			if v, err := s.open(); err == nil {
				all = append(all, v)
			}
		}
	}
	return all
}
