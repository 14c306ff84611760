package profile

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// When a recording ends: its start has read nothing new for recordCalm; or nobody has read anything
// for recordPatience, because the image was pulled and not run.
const (
	recordCalm     = 10 * time.Second
	recordPatience = time.Hour
	recordTick     = time.Second
)

// maxRecordings bounds the images whose start is recorded at the same time.
const maxRecordings = 32

// Recordings are the starts of a node that are recorded now, and end in profiles of a Dir.
// NewRecordings makes it.
type Recordings struct {
	dir     *Dir
	longest time.Duration
	log     *slog.Logger

	mu   sync.Mutex                   // held by who replaces the list
	list atomic.Pointer[[]*recording] // never changed: readers take no lock
}

// recording is one start of an image, or the wait for it.
type recording struct {
	recorder *Recorder
	layers   map[digest.Digest]bool
	began    time.Time
}

// NewRecordings returns the recordings of starts that end in dir; nil: nothing is recorded. A start
// is recorded for the longest time at most.
func NewRecordings(dir *Dir, longest time.Duration, log *slog.Logger) *Recordings {
	return &Recordings{dir: dir, longest: longest, log: log}
}

// Read notes a read of a layer in all starts that it may belong to.
func (r *Recordings) Read(layer digest.Digest, off, n int64) {
	list := r.list.Load()
	if list == nil {
		return
	}
	for _, one := range *list {
		if one.layers[layer] {
			one.recorder.Read(layer, off, n)
		}
	}
}

// Record begins to record the first start of an image, with the layers that are known of it. The
// caller runs save, which returns when the start is over, or ctx ends. nil: too many starts are
// recorded already.
func (r *Recordings) Record(
	ref string, manifest digest.Digest, layers map[digest.Digest]bool,
) (save func(ctx context.Context)) {
	one := &recording{recorder: NewRecorder(manifest, nil), layers: layers, began: time.Now()}
	if r.dir == nil || !r.add(one) {
		return nil
	}
	return func(ctx context.Context) { r.save(ctx, ref, one) }
}

func (r *Recordings) save(ctx context.Context, ref string, one *recording) {
	r.await(ctx, one)
	r.remove(one)
	p := one.recorder.Profile()
	if len(p.Ranges) == 0 {
		return
	}
	if _, err := r.dir.Save(p); err != nil {
		r.log.WarnContext(ctx, "profile of an image's start is not kept", "ref", ref, "err", err)
		return
	}
	r.log.InfoContext(ctx, "start recorded", "ref", ref, "manifest", p.Manifest,
		"ranges", len(p.Ranges), "bytes", p.Bytes())
}

func (r *Recordings) add(one *recording) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*recording
	if old := r.list.Load(); old != nil {
		list = slices.Clone(*old)
	}
	if len(list) >= maxRecordings {
		return false
	}
	list = append(list, one)
	r.list.Store(&list)
	return true
}

func (r *Recordings) remove(one *recording) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(*r.list.Load()), func(x *recording) bool {
		return x == one
	})
	r.list.Store(&list)
}

// await returns when a recording has all that it will have, or ctx ends.
func (r *Recordings) await(ctx context.Context, one *recording) {
	tick := time.NewTicker(recordTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		started := one.recorder.Started()
		if started.IsZero() {
			if time.Since(one.began) > recordPatience {
				return
			}
			continue
		}
		if one.recorder.Quiet(recordCalm) || time.Since(started) > r.longest {
			return
		}
	}
}
