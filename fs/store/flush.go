package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// flushDelay is how long after the first unsaved span a flush begins: what
	// a power cut can cost at most, in time.
	flushDelay = 2 * time.Second
	// flushBytes begins a flush earlier, so that no flush has more than about that many bytes to
	// write. It is more than what most containers read while they start: the disk and the cores are
	// theirs then.
	flushBytes = 256 << 20
)

// Run makes durable what layers have present, in batches, and drops from the page
// cache what nobody needs there, until ctx ends. It is called once; without it
// only Flush, Mark and Close do the former.
func (s *Store) Run(ctx context.Context) error {
	s.restock()
	drop := time.NewTicker(keepFor)
	defer drop.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-drop.C:
			if err := s.drop(keepFor); err != nil {
				s.log.Error("pages stay in the page cache", "dir", s.dir, "err", err)
			}
			continue
		case <-s.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.hurry:
		case <-time.After(flushDelay):
		}
		if err := s.Flush(); err == nil {
			s.restock()
		} else {
			// Nobody waits for this: the spans stay present in memory, or are
			// fetched again if their bytes are in doubt.
			s.log.Error("layers are not saved", "dir", s.dir, "err", err)
		}
	}
}

// changed notes that layer l has n more bytes present than the disk says.
func (s *Store) changed(l *Layer, n int64) {
	l.warmed()
	s.mu.Lock()
	s.dirty[l] = struct{}{}
	s.dirtyBytes += n
	hurry := s.dirtyBytes >= flushBytes
	s.mu.Unlock()
	signal(s.wake)
	if hurry {
		signal(s.hurry)
	}
}

// signal leaves a token in a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Flush makes durable what all layers have present now.
func (s *Store) Flush() error {
	s.mu.Lock()
	layers := make([]*Layer, 0, len(s.dirty))
	for l := range s.dirty {
		layers = append(layers, l)
	}
	clear(s.dirty)
	s.dirtyBytes = 0
	s.mu.Unlock()
	var errs []error
	for _, l := range layers {
		if err := l.flush(); err != nil {
			errs = append(errs, fmt.Errorf("flush layer %s: %w", l.digest, err))
			if l.isDirty() {
				s.changed(l, 0) // tried again after flushDelay
			}
		}
	}
	return errors.Join(errs...)
}

// forget ends the care for a layer that is closed.
func (s *Store) forget(l *Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirty, l)
	delete(s.warm, l)
}

// flush makes durable what is present at the moment of the call: first the
// device's bytes, then the map or the record that calls them present.
func (l *Layer) flush() error {
	l.flushMu.Lock()
	defer l.flushMu.Unlock()
	return l.save(Lazy)
}

// save is flush, and raises the layer's state to the one given. The caller holds flushMu.
func (l *Layer) save(state State) error {
	l.mu.Lock()
	if !l.dirty || l.gone {
		l.dirty = false
		l.mu.Unlock()
		return nil
	}
	l.dirty = false
	defer l.measureIdle()
	// Every bit of the snapshot was set after its bytes were written, so the
	// sync that follows covers them.
	bits, bytes := l.present.snapshot(), l.bytes
	written := l.unsaved
	rec := l.record.clone()
	rec.State = max(rec.State, state)
	l.mu.Unlock()

	f, err := l.device.get()
	if err != nil {
		l.setDirty()
		return err
	}
	err = f.Sync()
	if err == nil {
		err = l.checkHoles(f, written)
	}
	if err != nil {
		l.store.faults.note(err)
		l.revert()
		return err
	}
	if rec.State > l.recorded {
		if err := l.writeRecord(&rec); err != nil {
			l.setDirty()
			return err
		}
		l.recorded = rec.State
	} else if l.recorded == Lazy {
		p := &presence{generation: l.generation + 1, bytes: bytes, bits: bits}
		if err := l.store.storePresence(l.dir, rec.mapping(), p); err != nil {
			l.setDirty()
			return err
		}
		l.generation = p.generation
	}
	l.mu.Lock()
	l.record.State = rec.State
	l.markDurable(bits, bytes)
	l.unsaved = l.unsaved[len(written):]
	if len(l.unsaved) == 0 {
		l.unsaved = nil
		clear(l.zeros)
	}
	l.mu.Unlock()
	return nil
}

// revert takes back what is not durable after a sync of the device failed: the
// kernel reports that once and may have dropped any page written since the
// sync before, so none of these spans can be trusted to be read again.
func (l *Layer) revert() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch++
	l.unsaved = nil
	l.present.restore(l.durable)
	l.bytes = l.durableN
	l.record.State = l.recorded
	l.dirty = false
	l.evictions.Add(1) // who reads what is not there any more reads again
}

// lost notes that of the n bytes from off on, which were not settled and were present when there
// had been gone evictions, some are wrong. If any of them is not durable, nothing is present any
// more that is not, and evictions has changed. It waits for a flush under way.
func (l *Layer) lost(off, n int64, gone uint64) {
	l.flushMu.Lock() // no span goes meanwhile
	defer l.flushMu.Unlock()
	l.mu.Lock()
	unsaved := l.atRisk(off, n)
	l.mu.Unlock()
	if !unsaved || l.evictions.Load() != gone {
		return
	}
	l.log.Error("the disk has lost what was written: it is fetched again")
	l.store.faults.note(unix.EIO)
	l.revert()
}

// Mark raises the layer's state, durably: the device's bytes are synced before the record says so,
// and Record says it when the disk does. All spans must be present; whoever marks a layer Verified
// has had VerifyWhole succeed, or computed the diffID on the way in.
func (l *Layer) Mark(state State) error {
	l.flushMu.Lock() // no span goes meanwhile
	defer l.flushMu.Unlock()
	if !l.present.full() {
		return fmt.Errorf("mark layer %s %s: %d of %d spans are present",
			l.digest, state, l.present.count.Load(), l.present.n)
	}
	if state == Verified {
		// Before anybody can take it for what may be mounted.
		if err := l.seal(); err != nil {
			return fmt.Errorf("mark layer %s %s: %w", l.digest, state, err)
		}
	}
	if l.recorded < state || l.Record().State < state {
		l.setDirty()
	}
	if err := l.save(state); err != nil {
		return fmt.Errorf("mark layer %s %s: %w", l.digest, state, err)
	}
	return nil
}
