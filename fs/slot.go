package fs

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// slot is the place of one layer in the table: opened by the first who needs it.
type slot struct {
	open  func() (*live, error)
	ready atomic.Bool // open has returned
}

func (s *slot) close() error {
	if v, err := s.open(); err == nil {
		return v.close()
	}
	return nil // it never was there
}

func (s *slot) leave() error {
	if v, err := s.open(); err == nil {
		return v.leave()
	}
	return nil
}

// layer returns the live layer, from the table, the store or the registry.
func (t *Table) layer(ctx context.Context, l Layer, below []Below) (*live, error) {
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

// stored returns the live layer if the store has it, else an error that wraps os.ErrNotExist.
func (t *Table) stored(l Layer) (*live, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, errors.New("micad is stopping")
	}
	s := t.live[l.Digest]
	if s == nil {
		s = &slot{}
		s.open = sync.OnceValues(func() (*live, error) {
			defer s.ready.Store(true)
			v, err := t.openLive(l.Digest)
			if err == nil {
				v.adoptHeld(t.ctx)
			}
			return v, err
		})
		t.live[l.Digest] = s
	}
	t.mu.Unlock()
	v, err := s.open()
	if err != nil {
		t.mu.Lock()
		if t.live[l.Digest] == s {
			delete(t.live, l.Digest)
		}
		t.mu.Unlock()
		return nil, err
	}
	return v, v.addRef(l.Ref)
}

// openNow returns a layer of the table if it is open, else nil.
func (t *Table) openNow(d digest.Digest) *live {
	t.mu.Lock()
	s := t.live[d]
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
func (t *Table) opened() []*live {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*live
	for _, s := range t.live {
		if s.ready.Load() {
			if v, err := s.open(); err == nil {
				all = append(all, v)
			}
		}
	}
	return all
}
