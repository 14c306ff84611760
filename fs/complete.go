package fs

import (
	"context"
	"errors"
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
func (v *openLayer) lastCame() {
	select {
	case v.came <- struct{}{}:
	default:
	}
}

// tend advances the layer each time that its last span has come, until ctx ends. What fails,
// because the disk is full for instance, is tried again.
func (v *openLayer) tend(ctx context.Context) {
	for {
		select {
		case <-v.came:
		case <-ctx.Done():
			return
		}
		for wait := completeFirst; !v.completed(ctx); wait = min(2*wait, completeMost) {
			sleep(ctx, wait)
		}
	}
}

// completed is complete where nobody waits for it: the layer is on disk at once, and checked when
// no container that starts needs the cores. What is lost until then is fetched anew, and then the
// last span comes once more. False: it has to be tried again.
func (v *openLayer) completed(ctx context.Context) bool {
	sleep(ctx, time.Until(v.opened.Add(completeAfter)))
	ok := v.saved(ctx)
	if ok {
		v.t.budget.Starts.Calm(ctx)
		ok = v.complete(ctx)
	}
	if ctx.Err() == nil && v.stage() == stageLazy {
		v.Refill()
		ok = true
	}
	return ok || ctx.Err() != nil
}

// saved makes a complete layer durable, and says whether it is.
func (v *openLayer) saved(ctx context.Context) bool {
	s, err := v.t.store.Layer(v.digest)
	if err != nil {
		return false
	}
	defer s.Close()
	if err := s.Mark(store.Complete); err != nil {
		if ctx.Err() == nil && stageOf(s) != stageLazy {
			v.t.log.Error("complete layer is not recorded as such: tried again",
				"layer", v.digest, "err", err)
		}
		return false
	}
	rec := s.Record()
	b, err := v.origins.Blob(ocispec.Descriptor{Digest: rec.Layer, Size: rec.LayerSize})
	if err == nil {
		b.Forget() // all of it is here
	}
	return true
}

// complete checks a layer whose last span has come, and mounts it local over its mount
// points: containers that start from now on do without the daemon. False: it is worth another
// attempt.
func (v *openLayer) complete(ctx context.Context) bool {
	defer v.proof.Settling()()
	log := v.t.log.With("layer", v.digest)
	// An opening of its own: the layer may be closed or removed meanwhile.
	s, err := v.t.store.Layer(v.digest)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer s.Close()
	keep := v.t.cache.Fits(s.Size())
	if now := stageOf(s); now == stageLazy || !keep && now >= stageProved {
		return true // some has gone meanwhile; or it has been proved before
	}
	if err := v.proof.Check(ctx, s); err != nil {
		if ctx.Err() == nil && stageOf(s) != stageDisproved {
			log.Error("complete layer stays served by micad", "err", err)
			v.mend(ctx)
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
	log.Info("layer complete", "bytes", s.Size())
	v.mountLocal()
	return true
}

// mountLocal mounts the layer local over its mount points, unless it is closed or has gone again.
func (v *openLayer) mountLocal() {
	k, err := v.t.kernel()
	if err != nil || k.complete != Local {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.points {
		if p.mode == Local || v.stage() != stageLocal {
			continue
		}
		if err := p.mountLocal(v, k); err != nil {
			v.t.log.Warn("complete layer stays served by micad",
				"layer", v.digest, "dir", p.dir, "err", err)
		}
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
