package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// restoreParallel bounds how many chains Restore works on at once.
const restoreParallel = 16

// Restore mounts the layers of all committed snapshots again, after a restart, and gives up layers
// that an interrupted run left behind. It returns when all are tried; meanwhile, and without it
// too, each snapshot mounts what it needs itself. The error joins one for each layer that could not
// be mounted; such a layer is tried again when a snapshot needs it.
func (s *Snapshotter) Restore(ctx context.Context) error {
	chains, err := s.servedChains(ctx)
	if err != nil {
		return fmt.Errorf("restore layers: %w", err)
	}
	var (
		mu sync.Mutex
		// by the snapshot that failed: those above it fail for the same reason
		failed = map[string]error{}
	)
	var group errgroup.Group
	group.SetLimit(restoreParallel)
	for _, c := range chains {
		group.Go(func() error {
			_, err := s.await(ctx, c)
			var broken *brokenError
			if errors.As(err, &broken) {
				if errors.Is(err, ErrDisproved) { // until a container needs it: see admit
					s.log.WarnContext(ctx, "a layer is not mounted again", "err", err)
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				failed[broken.name] = err
				return nil
			}
			return err
		})
	}
	err = group.Wait()
	errs := []error{err}
	for _, err := range failed {
		errs = append(errs, err)
	}
	if ctx.Err() == nil {
		if err := s.collectLayers(ctx, nil); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// servedChains returns the chain of each committed snapshot that is served.
func (s *Snapshotter) servedChains(ctx context.Context) ([]chain, error) {
	infos, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	var chains []chain
	for _, info := range infos {
		if _, ok := info.Labels[recordLabel]; !ok {
			continue
		}
		c, err := s.viewChain(ctx, info.Name)
		if errdefs.IsNotFound(err) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		chains = append(chains, c)
	}
	return chains, nil
}

// await returns when all served layers of the chain are mounted, and says whether one was not yet.
// It mounts, lowest first, those that nobody mounted since the start, or that somebody has
// unmounted meanwhile.
func (s *Snapshotter) await(ctx context.Context, c chain) (mounted bool, err error) {
	if mounted, err = s.awaitOnce(ctx, c); err != nil {
		return mounted, err
	}
	var dirs []string
	for _, l := range c {
		if l.served != nil {
			dirs = append(dirs, l.dir)
		}
	}
	displaced := s.layers.Displaced(dirs)
	if len(displaced) == 0 {
		return mounted, nil
	}
	for _, l := range c {
		if slices.Contains(displaced, l.dir) {
			s.log.WarnContext(ctx, "a mounted layer is gone from its place",
				"layer", l.served.Layer, "dir", l.dir)
			s.restored.forget(l.id)
		}
	}
	return s.awaitOnce(ctx, c)
}

// awaitOnce mounts what was not mounted since the start, as far as that is known.
func (s *Snapshotter) awaitOnce(ctx context.Context, c chain) (mounted bool, err error) {
	for i := len(c) - 1; i >= 0; i-- {
		l, below := c[i], c[i+1:]
		if l.served == nil || s.restored.mounted(l.id) {
			continue
		}
		mounted = true
		err := s.restored.once(ctx, l.id, func() error { return s.remount(ctx, l, below) })
		if err != nil {
			return mounted, &brokenError{name: l.name, record: *l.served, err: err}
		}
	}
	return mounted, nil
}

// remount mounts the layer of a committed snapshot at the directory that it had before.
func (s *Snapshotter) remount(ctx context.Context, l link, below chain) error {
	if err := s.uses.acquire(ctx, l.served.Layer); err != nil {
		return err
	}
	defer s.uses.release(l.served.Layer)
	layer := l.served.layer()
	if s.examine(below); !below.changed() {
		layer.Dir = l.served.Dir
	}
	err := s.markServed(layer.Digest)
	var mounted Mounted
	if err == nil {
		mounted, err = s.mountLayer(ctx, layer, below)
	}
	if err == nil && mounted.Dir != l.served.Dir {
		// A layer under it is another one now. Running containers use the former directory.
		r := *l.served
		r.Dir = mounted.Dir
		err = s.rerecord(ctx, l.name, r)
	}
	switch {
	case s.restored.promised(l.id): // it is mounted for the first time
	case err != nil:
		s.counters.restoreErrors.Add(1)
	default:
		s.counters.restored.Add(1)
	}
	return err
}

// brokenError is a layer that could not be mounted again.
type brokenError struct {
	name   string // of the snapshot
	record record
	err    error
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("restore layer %s of %s: %v", e.record.Layer, e.record.Ref, e.err)
}

func (e *brokenError) Unwrap() error { return e.err }

// restored knows which snapshots' layers are mounted since the start of the process, by the
// snapshot's number: those of earlier runs, and those that were promised, are not at first. The
// zero value is ready.
type restored struct {
	mu sync.Mutex
	m  map[string]*restoring
}

type restoring struct {
	turn chan struct{} // holds one token: whoever has it may mount

	mu       sync.Mutex
	mounted  bool
	promised bool  // this process committed the snapshot before its layer was mounted
	attempts int   // that have ended
	err      error // of the last one
}

// state returns the state of a snapshot.
func (r *restored) state(id string) *restoring {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.m[id]
	if st == nil {
		st = &restoring{turn: make(chan struct{}, 1)}
		if r.m == nil {
			r.m = map[string]*restoring{}
		}
		r.m[id] = st
	}
	return st
}

// made notes a snapshot of this process, whose layer is mounted, or promised.
func (r *restored) made(id string, promised bool) {
	st := r.state(id)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mounted, st.promised = !promised, promised
}

func (r *restored) mounted(id string) bool {
	st := r.state(id)
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.mounted
}

func (r *restored) promised(id string) bool {
	st := r.state(id)
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.promised
}

// forget drops what is known of a removed snapshot.
func (r *restored) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, id)
}

// once calls mount unless it has succeeded before for this snapshot. Calls for one snapshot take
// turns; those that waited while another's attempt failed share its error, unless it failed because
// that caller gave up.
func (r *restored) once(ctx context.Context, id string, mount func() error) error {
	st := r.state(id)
	st.mu.Lock()
	seen := st.attempts
	st.mu.Unlock()
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	st.mu.Lock()
	mounted, err, tried := st.mounted, st.err, st.attempts > seen
	st.mu.Unlock()
	if mounted {
		return nil
	}
	if tried && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	err = mount()
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mounted, st.err = err == nil, err
	st.attempts++
	return err
}
