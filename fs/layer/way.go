package layer

import (
	"sync"
	"time"
)

// way is what is known of the way to one registry, and what fills have under way there.
type way struct {
	flow *flow
	pace pace
}

// waysMost bounds the registries that are remembered.
const waysMost = 64

// ways is a Budget's, by place. The zero value is ready.
type ways struct {
	mu      sync.Mutex
	byPlace map[string]*way
}

// way returns the way to a place.
func (b *Budget) way(place string) *way {
	b.ways.mu.Lock()
	defer b.ways.mu.Unlock()
	if w := b.ways.byPlace[place]; w != nil {
		return w
	}
	if len(b.ways.byPlace) >= waysMost || b.ways.byPlace == nil {
		b.ways.byPlace = map[string]*way{} // what is under way keeps its own
	}
	w := &way{flow: newFlow(&b.readers)}
	b.ways.byPlace[place] = w
	return w
}

// way returns the way to the registry that has the layer's blob.
func (l *Layer) way() *way { return l.o.Budget.way(l.o.Blob.Place()) }

// readers is how many reads wait, of all layers.
type readers struct {
	mu      sync.Mutex
	waiting int
	since   time.Time // when the first of them came, or the last one went
}

// waits says that a reader waits from now on, until the goes that is paired with it.
func (r *readers) waits() { r.change(1, 1) }

func (r *readers) goes() { r.change(-1, 0) }

// change adds n; where that makes it as many as turn, it is noted when.
func (r *readers) change(n, turn int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting += n; r.waiting == turn {
		r.since = time.Now()
	}
}

// unwaited returns for how long none has waited; 0: one does.
func (r *readers) unwaited() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting > 0 {
		return 0
	}
	return time.Since(r.since)
}
