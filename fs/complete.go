package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/store"
)

// completeAfter is how long after it was opened a layer is complete at the soonest. The checks and
// mounts of a small layer, which has come when its pull is hardly over, wait until the container
// has had the cores.
const completeAfter = 500 * time.Millisecond

// completeFirst and completeMost are the waits between two attempts to complete a layer.
const completeFirst, completeMost = time.Second, time.Minute

// lastCame tells tend that the last span has come.
func (l *openLayer) lastCame() {
	select {
	case l.came <- struct{}{}:
	default:
	}
}

// tend advances the layer each time that its last span has come, until ctx ends. What fails,
// because the disk is full for instance, is tried again.
func (l *openLayer) tend(ctx context.Context) {
	for {
		select {
		case <-l.came:
		case <-ctx.Done():
			return
		}
		for wait := completeFirst; !l.advanced(ctx); wait = min(2*wait, completeMost) {
			sleep(ctx, wait)
		}
	}
}

// advanced is advance where nobody waits for it: not in the layer's first half second, and checked
// when no container that starts needs the cores. What is lost until then is fetched anew, and then
// the last span comes once more.
func (l *openLayer) advanced(ctx context.Context) bool {
	sleep(ctx, time.Until(l.opened.Add(completeAfter)))
	ok := l.advance(ctx, l.t.budget.Starts.Calm)
	if ctx.Err() == nil && l.stage() == stageLazy {
		l.Refill()
		ok = true
	}
	return ok || ctx.Err() != nil
}

// advance makes a whole layer durable, checks it when calm has returned, and mounts it local over
// its mount points: containers that start from now on do without the daemon. False: it is worth
// another attempt.
func (l *openLayer) advance(ctx context.Context, calm func(ctx context.Context)) bool {
	log := l.t.log.With("layer", l.digest)
	// An opening of its own: the layer may be closed or removed meanwhile.
	s, err := l.t.store.Layer(l.digest)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer s.Close()
	if err := s.Mark(store.Complete); err != nil {
		if ctx.Err() == nil && stageOf(s) != stageLazy {
			log.Error("complete layer is not recorded as such: tried again", "err", err)
		}
		return false
	}
	rec := s.Record()
	b, err := l.origins.Blob(ocispec.Descriptor{Digest: rec.Layer, Size: rec.LayerSize})
	if err == nil {
		b.Forget() // all of it is here
	}
	calm(ctx)
	defer l.proof.Settling()()
	keep := s.Sealed() || l.t.cache.Fits(s.Size())
	if now := stageOf(s); now == stageLazy || !keep && now >= stageProved {
		return true // some has gone meanwhile; or it has been proved before
	}
	if err := l.proof.Check(ctx, s); err != nil {
		if ctx.Err() == nil && stageOf(s) != stageDisproved {
			log.Error("complete layer stays served by micad", "err", err)
			l.mend(ctx)
		}
		return !ofDisk(err)
	}
	if !keep {
		// Its spans can go one by one, for as long as the kernel does not read it by itself.
		return true
	}
	if err := s.Mark(store.Verified); err != nil {
		log.Error("verified layer is not recorded as such: tried again", "err", err)
		return false
	}
	log.Info("layer local", "bytes", s.Size())
	l.mountLocal()
	return true
}

// mend puts right what is wrong on disk of a layer whose bytes together are not what they should
// be.
func (l *openLayer) mend(ctx context.Context) {
	if _, err := l.t.cache.Verify(ctx, l); err != nil && ctx.Err() == nil {
		l.t.log.ErrorContext(ctx, "layer on disk is wrong", "layer", l.digest, "err", err)
	}
}

// mountLocal mounts the layer local over its mount points, unless it is closed or has gone again.
func (l *openLayer) mountLocal() {
	k, err := l.t.kernel()
	if err != nil || k.complete != Local {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.points {
		if p.mode == Local || l.stage() != stageLocal {
			continue
		}
		if err := p.mountLocal(l, k); err != nil {
			l.t.log.Warn("complete layer stays served by micad",
				"layer", l.digest, "dir", p.dir, "err", err)
		}
	}
}

// MakeLazy implements cache.Layer: it makes a complete layer lazy again, without content, and
// returns how many bytes of it went. Its mount points show it at any moment. Who uses a mount of
// the complete layer still reads that to the end: their device is kept by the kernel until the last
// of them has gone.
func (l *openLayer) MakeLazy(ctx context.Context) (int64, error) {
	k, err := l.t.kernel()
	if err != nil {
		return 0, err
	}
	l.t.mountsMu.RLock()
	defer l.t.mountsMu.RUnlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stage() == stageClosed {
		return 0, nil
	}
	for _, p := range l.points {
		if p.mode != Local {
			continue
		}
		if k.lazy != EROFS {
			l.t.fixed.Store(true)
			return 0, nil
		}
		var done bool
		err := l.t.store.WithRoom(func() (err error) { // folders to mount at are made
			done, err = l.exchange(p, func(q *mountPoint) error { return q.mountLazy(ctx, l, k) })
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("make layer %s lazy: %w", l.digest, err)
		}
		if !done {
			l.t.log.WarnContext(ctx, "the kernel cannot replace a mount by another: complete layers "+
				"stay whole until containerd removes them", "layer", l.digest)
			return 0, nil
		}
	}
	_, bytes := l.store.Count()
	if err := l.data.Empty(); err != nil {
		return 0, err
	}
	l.t.fetch.Add(l.digest, l.data)
	l.t.log.InfoContext(ctx, "layer is lazy again", "layer", l.digest, "bytes", bytes)
	return bytes, nil
}
