package store

import (
	"errors"
	"fmt"
	"time"
)

// keepFor is how long what was written stays in the page cache for somebody to read it, once to
// twice that long. Whoever has read it by then has its own copy there, because EROFS and FUSE keep
// one.
const keepFor = 30 * time.Second

// warmed notes that some of the device is in the page cache.
func (l *Layer) warmed() {
	if l.warm.Load() {
		return
	}
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	l.warm.Store(true)
	l.store.warm[l] = time.Now()
}

// drop has the page cache drop what is durable of the layers that have been warm for so long.
func (s *Store) drop(age time.Duration) error {
	var old []*Layer
	s.mu.Lock()
	for l, since := range s.warm {
		if time.Since(since) >= age {
			old = append(old, l)
			delete(s.warm, l)
			l.warm.Store(false)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, l := range old {
		if err := l.drop(); err != nil {
			errs = append(errs, fmt.Errorf("layer %s: %w", l.digest, err))
		}
	}
	return errors.Join(errs...)
}

func (l *Layer) drop() error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	if l.gone {
		return nil
	}
	if l.isDirty() {
		l.warmed() // not all of it goes
	}
	f, err := l.device.get()
	if err != nil {
		return err
	}
	return f.DropCache(0, l.Size())
}
