package fs

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/pull"
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

// recordings are the starts that are recorded now. The list is replaced, never changed: readers
// take no lock.
type recordings struct {
	list atomic.Pointer[[]*recording]
}

// recording is one start of an image, or the wait for it.
type recording struct {
	recorder *profile.Recorder
	layers   map[digest.Digest]bool
	began    time.Time
}

// read notes a read of a layer in all starts that it may belong to.
func (r *recordings) read(layer digest.Digest, off, n int64) {
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

// addLocked adds a recording, unless there are too many. The caller holds Table.mu.
func (r *recordings) addLocked(one *recording) bool {
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

// removeLocked takes a recording away. The caller holds Table.mu.
func (r *recordings) removeLocked(one *recording) {
	list := slices.DeleteFunc(slices.Clone(*r.list.Load()), func(x *recording) bool {
		return x == one
	})
	if len(list) == 0 {
		r.list.Store(nil)
		return
	}
	r.list.Store(&list)
}

// record begins to record the first start of the image to which a layer belongs, with the layers
// that are known of it. It ends by itself.
func (t *Table) record(l pull.Request) {
	if t.o.Profiles == nil {
		return
	}
	one := &recording{
		recorder: profile.NewRecorder(l.Manifest, nil), layers: l.Layers(),
		began: time.Now(),
	}
	t.mu.Lock()
	ok := t.recordings.addLocked(one)
	t.mu.Unlock()
	if !ok {
		return
	}
	t.goes(func(ctx context.Context) {
		t.await(ctx, one)
		t.mu.Lock()
		t.recordings.removeLocked(one)
		t.mu.Unlock()
		p := one.recorder.Profile()
		if len(p.Ranges) == 0 {
			return
		}
		if _, err := t.o.Profiles.Save(p); err != nil {
			t.log.Warn("profile of an image's start is not kept", "ref", l.Ref, "err", err)
			return
		}
		t.log.Info("start recorded", "ref", l.Ref, "manifest", l.Manifest, "ranges", len(p.Ranges),
			"bytes", p.Bytes())
	})
}

// await returns when a recording has all that it will have, or ctx ends.
func (t *Table) await(ctx context.Context, one *recording) {
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
		if one.recorder.Quiet(recordCalm) || time.Since(started) > t.o.RecordTime {
			return
		}
	}
}
