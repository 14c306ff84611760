package fs

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
)

// fillDelay is how long the fill of a layer that nobody reads waits: a pull, and the start that
// follows it, have the machine and the line for themselves.
const fillDelay = 2 * time.Second

// startFill brings the rest of the layer in the background.
func (l *openLayer) startFill() {
	if !l.filled.Swap(true) {
		l.t.fetch.Fill(l.digest)
	}
}

// Refill implements cache.Layer: it brings what was thrown away of a layer that had been filled.
func (l *openLayer) Refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.filled.Load() && l.stage() == stageLazy {
		l.t.fetch.Add(l.digest, l.data)
		l.t.fetch.Fill(l.digest)
	}
}

// Rest implements cache.Layer: it ends what is fetched in the background for a layer that nobody
// uses. The next read begins it again.
func (l *openLayer) Rest() {
	// without the lock: what it waits for may wait for room, and that for the lock
	l.t.fetch.Forget(l.digest)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.delay != nil {
		l.delay.Stop()
	}
	l.filled.Store(false)
	if l.stage() == stageLazy {
		l.t.fetch.Add(l.digest, l.data)
	}
}

// wasRead is told of every read from the kernel. The first one starts the fill of all layers of
// the image: a container is at work, and will read on.
func (l *openLayer) wasRead() {
	l.t.budget.Starts.Reading()
	if l.filled.Load() {
		return
	}
	l.t.budget.Starts.Started()
	l.startFill()
	ref := l.origins.Latest()
	for _, other := range l.t.opened(false) {
		if other.origins.Latest() == ref {
			other.startFill()
		}
	}
}

// Starting tells that a container is about to start, which may find all that it reads at hand: what
// is done in the background leaves the cores to it.
func (t *Table) Starting() { t.budget.Starts.Starting() }

// maxReplays bounds the replays that are remembered for Replays.
const maxReplays = 100

// Replay implements pull.Host. Layers that are not open yet follow when they are, until stop is
// called.
func (h pullHost) Replay(
	ref string, layers map[digest.Digest]bool, from *profile.Profile,
) (stop func()) {
	t := h.Table
	whole := map[digest.Digest]bool{}
	for _, l := range t.opened(false) {
		whole[l.digest] = l.stage() >= stageWhole
	}
	ranges := make([]fetch.Range, len(from.Ranges))
	for i, r := range from.Ranges {
		ranges[i] = fetch.Range{Layer: r.Layer, Off: r.Off, Size: r.Size}
	}
	r := replayed{ref: ref, manifest: from.Manifest, began: time.Now()}
	r.replay = t.fetch.Replay(ranges, func(d digest.Digest) bool { return layers[d] && !whole[d] })
	t.mu.Lock()
	defer t.mu.Unlock()
	t.replays = append(t.replays, r)
	t.replays = slices.Delete(t.replays, 0, max(len(t.replays)-maxReplays, 0))
	return r.replay.Close
}

// ReplayStatus says how the replay of an image's profile went. Bytes are uncompressed. A profile
// that fits has nearly all of Brought in Read, and few Missed.
type ReplayStatus struct {
	Ref      string        `json:"reference"`
	Manifest digest.Digest `json:"manifest"`
	Began    time.Time     `json:"began"`
	Ranges   int           `json:"ranges"`        // in the profile
	Brought  int64         `json:"brought_bytes"` // that came because of it
	Read     int64         `json:"read_bytes"`    // of these, in spans that were read
	// that waited for something else in the first minute
	Missed   int64 `json:"missed_reads"`
	Finished bool  `json:"finished"`
}

// Replays returns the latest replays, the last first.
func (t *Table) Replays() []ReplayStatus {
	t.mu.Lock()
	all := slices.Clone(t.replays)
	t.mu.Unlock()
	list := make([]ReplayStatus, 0, len(all))
	for _, r := range slices.Backward(all) {
		s := r.replay.Stats()
		list = append(list, ReplayStatus{
			Ref: r.ref, Manifest: r.manifest, Began: r.began,
			Ranges: s.Ranges, Brought: s.Brought, Read: s.Read, Missed: s.Missed,
			Finished: s.Finished,
		})
	}
	return list
}

// FetchStats returns what was fetched that no reader had asked for.
func (t *Table) FetchStats() fetch.Stats { return t.fetch.Stats() }
