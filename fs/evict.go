package fs

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/mica-snapshotter/mica/fs/store"
)

// recently is how long ago something was read that must not go for what is fetched in the background.
const recently = 10 * time.Minute

// rank is how soon something goes: what containers do not use first, and of that what was read least recently.
type rank struct {
	inUse bool
	read  int64 // seconds since 1970; of what was read more than an hour ago, whole minutes
}

func (r rank) compare(o rank) int {
	if r.inUse != o.inUse {
		if r.inUse {
			return 1
		}
		return -1
	}
	return cmp.Compare(r.read, o.read)
}

func rankOf(inUse bool, read, now time.Time) rank {
	s := read.Unix()
	if now.Sub(read) > time.Hour {
		s -= s % 60
	}
	return rank{inUse, s}
}

// lot is the layers from which something may go.
type lot struct {
	now    time.Time
	layers []*live
	inUse  func(*live) bool
	whole  bool // complete layers may go too
}

// solid says whether a layer goes as a whole or not at all: the kernel reads it, or its spans do not
// come back one by one.
func solid(v *live) bool {
	return v.store.Record().State == store.Verified || v.store.Sealed() || v.whole()
}

// each calls fn for each part that may go by itself: spans, or a whole layer (span -1).
func (l *lot) each(fn func(v *live, span int, r rank, bytes int64)) {
	for _, v := range l.layers {
		inUse := l.inUse(v)
		if solid(v) {
			if _, bytes := v.store.Count(); !inUse && l.whole && bytes > 0 {
				fn(v, -1, rankOf(false, v.store.LastUsed(), l.now), bytes)
			}
			continue
		}
		spans, err := v.index.Spans()
		if err != nil {
			continue // its reads say why
		}
		for i := range spans {
			if v.store.Present(i) {
				fn(v, i, rankOf(inUse, v.store.LastRead(i), l.now), spans[i].Size)
			}
		}
	}
}

// upTo returns the lowest rank such that what has it, or a lower one, is need bytes or more; false: all together is less.
func (l *lot) upTo(need int64) (rank, bool) {
	sizes := map[rank]int64{}
	l.each(func(_ *live, _ int, r rank, bytes int64) { sizes[r] += bytes })
	var last rank
	for _, r := range slices.SortedFunc(maps.Keys(sizes), rank.compare) {
		last = r
		if need -= sizes[r]; need <= 0 {
			return r, true
		}
	}
	return last, false
}

// take lets need bytes go whose rank is no higher than limit, and returns how many went.
func (l *lot) take(ctx context.Context, need int64, limit rank) (int64, error) {
	var errs []error
	var freed, planned int64
	chosen := map[*live][]int{}
	// What is lower goes in any case, of the limit's own rank as much as is needed.
	for _, exact := range []bool{false, true} {
		l.each(func(v *live, span int, r rank, bytes int64) {
			if c := r.compare(limit); c > 0 || (c == 0) != exact || planned >= need {
				return
			}
			planned += bytes
			chosen[v] = append(chosen[v], span)
		})
	}
	for v, spans := range chosen {
		if ctx.Err() != nil {
			break
		}
		var n int64
		var err error
		if slices.Contains(spans, -1) {
			n, err = v.loosen(ctx)
		} else {
			slices.Sort(spans)
			n, err = v.data.Evict(spans)
		}
		if errors.Is(err, store.ErrSealed) {
			err = nil // it has become complete meanwhile
		}
		freed += n
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}

// makeRoom makes room for need bytes of readers, by what has the lowest rank; need 0: for the background, by what no container
// uses and nobody has read recently.
func (c *cache) makeRoom(ctx context.Context, need int64) {
	used, demand := c.used(), need > 0
	goal := c.limit - min(need, c.limit/4) - c.step()
	if !demand {
		goal = c.backgroundLimit() - c.step()
	}
	if c.limit == 0 || used <= goal {
		return
	}
	l := c.lot(ctx, lookAge)
	limit, _ := l.upTo(used - goal)
	if old := (rank{false, l.now.Add(-recently).Unix()}); !demand && old.compare(limit) < 0 {
		limit = old
	}
	freed, err := l.take(ctx, used-goal, limit)
	c.evicted.Add(freed)
	if err != nil && ctx.Err() == nil {
		c.t.log.Error("not all that is to go from the disk does", "dir", c.t.o.Root, "err", err)
	}
	if freed > 0 {
		c.t.log.Debug("evicted", "bytes", freed, "used", used, "quota", c.limit)
	}
	if demand && freed == 0 && ctx.Err() == nil {
		c.mu.Lock()
		c.stuck = time.Now().Add(stuckTime)
		c.mu.Unlock()
	}
}

// relief is how much goes when the disk is full, bytes.
const relief = 64 << 20

// relieve lets some go of what no container uses, because the disk is full, whoever has filled it.
func (c *cache) relieve(ctx context.Context) {
	l := c.lot(ctx, lookAge)
	l.layers = slices.DeleteFunc(l.layers, l.inUse)
	limit, _ := l.upTo(relief)
	freed, err := l.take(ctx, relief, limit)
	c.evicted.Add(freed)
	if err != nil && ctx.Err() == nil {
		c.t.log.Error("not all that is to go from the disk does", "dir", c.t.o.Root, "err", err)
	}
}

// lookAge is how old the knowledge may be of what is in use, where room is made: nothing wrong comes of it if it is wrong.
const lookAge = time.Second

// lot returns what may go now.
func (c *cache) lot(ctx context.Context, age time.Duration) *lot {
	used, known := c.look(ctx, age)
	return &lot{
		now: time.Now(), layers: c.t.opened(), whole: !c.solid.Load(),
		inUse: func(v *live) bool { return !known || used[v.digest] },
	}
}
