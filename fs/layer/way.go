package layer

import (
	"sync"
	"time"
)

// Placed is what a Source may be as well: Place names the registry that is asked first. What one
// registry's answers tell of the way to it says nothing of the way to another.
type Placed interface{ Place() string }

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

// used returns how many bytes fills have under way.
func (w *ways) used() (n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, way := range w.byPlace {
		way.flow.mu.Lock()
		n += way.flow.used
		way.flow.mu.Unlock()
	}
	return n
}

// way returns the way to the registry that has the layer's blob.
func (l *Layer) way() *way {
	place := ""
	if p, ok := l.o.Blob.(Placed); ok {
		place = p.Place()
	}
	return l.o.Budget.way(place)
}

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

// waited returns how many wait, and for how long none has; 0: one does.
func (r *readers) waited() (n int, quiet time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting > 0 {
		return r.waiting, 0
	}
	return 0, time.Since(r.since)
}
