package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// dropBytes is how much of what readers have got their own copy of may stay in the
	// page cache before it is dropped.
	dropBytes = 16 << 20
	// keepFor is how long what was written stays in the page cache for
	// somebody to read it: for once to twice that time after it has become
	// durable.
	keepFor = 30 * time.Second
)

// dropPages drops from the page cache what nobody needs there, until ctx ends.
func (s *Store) dropPages(ctx context.Context) {
	tick := time.NewTicker(keepFor)
	defer tick.Stop()
	for {
		old := false
		select {
		case <-ctx.Done():
			return
		case <-s.used:
		case <-tick.C:
			old = true
		}
		if err := s.drop(old); err != nil {
			s.log.Error("pages stay in the page cache", "dir", s.dir, "err", err)
		}
	}
}

// drop drops what readers have got their own copy of, and if old is set what nobody
// has asked for in time as well.
func (s *Store) drop(old bool) error {
	s.mu.Lock()
	s.usedBytes = 0
	layers := make([]*Layer, 0, len(s.warm))
	for l := range s.warm {
		layers = append(layers, l)
	}
	s.mu.Unlock()
	var errs []error
	for _, l := range layers {
		if err := l.drop(old); err != nil {
			errs = append(errs, fmt.Errorf("layer %s: %w", l.digest, err))
		}
	}
	return errors.Join(errs...)
}

// warmed notes that pages of l are in the page cache, n bytes of which readers have
// got their own copy of.
func (s *Store) warmed(l *Layer, n int64) {
	s.mu.Lock()
	s.warm[l] = struct{}{}
	s.usedBytes += n
	enough := s.usedBytes >= dropBytes
	s.mu.Unlock()
	if enough {
		signal(s.used)
	}
}

// Served notes that a reader, who keeps what it reads, has got the n bytes from
// off on from elsewhere: from the buffer that a span was decoded into, say. What the
// page cache holds of them because the span was written too, before the call or
// after it, is dropped soon after it is durable. ReadAt notes that by itself.
func (l *Layer) Served(off, n int64) {
	if n < directFrom {
		return
	}
	if fresh := l.pages.served(off, n); fresh > 0 {
		l.store.warmed(l, fresh)
	}
}

// passed is Served for bytes that were read through the page cache.
func (l *Layer) passed(off, n int64) {
	if n >= directFrom {
		l.pages.read(off, n)
		l.Served(off, n)
	}
}

// drop drops what is not needed of the layer.
func (l *Layer) drop(old bool) error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if l.gone {
		l.store.forget(l)
		return nil
	}
	return l.dropHeld(old)
}

// dropHeld is drop for who holds flushMu, of a layer that is not gone.
func (l *Layer) dropHeld(old bool) error {
	var all []extent
	if old {
		var more bool
		if all, more = l.pages.takeOld(); !more {
			l.store.cooled(l)
		}
	} else {
		all = l.pages.takeUsed()
	}
	if len(all) == 0 {
		return nil
	}
	f, err := l.device.get()
	if err != nil {
		return err
	}
	for _, x := range all {
		if err := f.DropCache(x.off, x.n); err != nil {
			return err
		}
	}
	return nil
}

// cooled ends the care for a layer of which nothing is known to be in the page cache.
func (s *Store) cooled(l *Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.warm, l)
}
