package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/fs/store"
)

const (
	// usedTick is how often it is noted which layers are in use.
	usedTick = time.Minute
	// lookAge is how old the knowledge may be of what is in use, where room is made: nothing wrong
	// comes of it if it is wrong.
	lookAge = time.Second
	// recently is how long ago something was read that must not go for what is fetched in the
	// background.
	recently = 10 * time.Minute
	// relief is how much goes when the disk is full, bytes.
	relief = 64 << 20
)

// evictor makes room whenever it is asked for, until ctx ends.
func (c *Cache) evictor(ctx context.Context) {
	tick := time.NewTicker(usedTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.look(ctx, 0)
			for _, v := range c.host.Layers() {
				v.Store().SaveReads()
				v.Store().Measure() // what was put beside its files too
			}
			continue
		case <-c.wake:
		}
		c.mu.Lock()
		round, need, full := c.round, c.need, c.full
		c.round, c.need, c.full = make(chan struct{}), 0, false
		c.mu.Unlock()
		var relieved error
		if full {
			relieved = c.relieve(ctx)
		}
		if err := errors.Join(relieved, c.makeRoom(ctx, need)); err != nil && ctx.Err() == nil {
			c.log.Error("not all that is to go from the disk does", "dir", c.root, "err", err)
		}
		close(round)
	}
}

// makeRoom makes room for need bytes of readers, by what is coldest; need 0: for the background, by
// what no container uses and nobody has read recently.
func (c *Cache) makeRoom(ctx context.Context, need int64) error {
	used, demand := c.used(), need > 0
	goal := c.limit - min(need, c.limit/4) - c.step()
	if !demand {
		goal = c.backgroundLimit() - c.step()
	}
	if c.limit == 0 || used <= goal {
		return nil
	}
	which, limit := c.candidates(ctx, lookAge), hottest
	if !demand {
		limit = warmth{false, which.now.Add(-recently).Unix()}
	}
	freed, err := c.free(ctx, used-goal, limit, which)
	if freed > 0 {
		c.log.Debug("evicted", "bytes", freed, "used", used, "quota", c.limit)
	}
	if demand && freed == 0 && ctx.Err() == nil {
		c.mu.Lock()
		c.stuck = time.Now().Add(stuckTime)
		c.mu.Unlock()
	}
	return err
}

// relieve lets some go of what no container uses, because the disk is full, whoever has filled it.
func (c *Cache) relieve(ctx context.Context) error {
	_, err := c.free(ctx, relief, hottest, c.candidates(ctx, lookAge).unused())
	return err
}

// GiveUp lets all content go of layers that no container uses, and stays able to serve them: they
// are fetched again when somebody reads them.
func (c *Cache) GiveUp(ctx context.Context) error {
	which := c.candidates(ctx, 0).unused()
	for _, v := range which.layers {
		v.Rest()
	}
	if _, err := c.free(ctx, math.MaxInt64, hottest, which); err != nil {
		return fmt.Errorf("give up unused content: %w", err)
	}
	return nil
}

// free lets the coldest of the candidates go, need bytes of them and nothing warmer than limit. It
// returns how many bytes went.
func (c *Cache) free(
	ctx context.Context, need int64, limit warmth, which *candidates,
) (int64, error) {
	if enough := which.threshold(need); enough.compare(limit) < 0 {
		limit = enough
	}
	freed, err := which.evict(ctx, need, limit)
	c.evicted.Add(freed)
	return freed, err
}

// look notes which layers are in use, and returns them, as they were no longer ago than age; false
// where that is not known.
func (c *Cache) look(ctx context.Context, age time.Duration) (map[digest.Digest]bool, bool) {
	if c.o.InUse == nil {
		return nil, false
	}
	c.mu.Lock()
	used, looked := c.inUse, c.looked
	c.mu.Unlock()
	if time.Since(looked) < age {
		return used, true
	}
	used, err := c.o.InUse(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.log.Warn("it is not known which layers are in use: all are taken to be", "err", err)
		}
		return nil, false
	}
	for _, v := range c.host.Layers() {
		if used[v.Store().Digest()] {
			v.Store().Used()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inUse, c.looked = used, time.Now()
	return used, true
}

// warmth orders what may go, the coldest first: what containers do not use, and of that what was
// read least recently.
type warmth struct {
	inUse bool
	read  int64 // seconds since 1970; of what was read more than an hour ago, whole minutes
}

// hottest is as warm as anything.
var hottest = warmth{true, math.MaxInt64}

func (w warmth) compare(o warmth) int {
	if w.inUse != o.inUse {
		if w.inUse {
			return 1
		}
		return -1
	}
	return cmp.Compare(w.read, o.read)
}

func warmthOf(inUse bool, read, now time.Time) warmth {
	s := read.Unix()
	if now.Sub(read) > time.Hour {
		s -= s % 60
	}
	return warmth{inUse, s}
}

// candidates is the layers from which something may go.
type candidates struct {
	now    time.Time
	layers []Layer
	inUse  func(Layer) bool
	fixed  bool // layers that go as a whole stay
}

// candidates returns what may go now, by a knowledge of what is in use that is no older than age.
func (c *Cache) candidates(ctx context.Context, age time.Duration) *candidates {
	used, known := c.look(ctx, age)
	return &candidates{
		now: time.Now(), layers: c.host.Layers(), fixed: c.host.Fixed(),
		inUse: func(v Layer) bool { return !known || used[v.Store().Digest()] },
	}
}

// unused leaves out what containers use.
func (l *candidates) unused() *candidates {
	l.layers = slices.DeleteFunc(l.layers, l.inUse)
	return l
}

// asWhole says whether a layer goes as a whole or not at all: the kernel reads it, or its spans do
// not come back one by one.
func asWhole(v Layer) bool {
	if v.Store().Sealed() {
		return true
	}
	spans, err := v.Spans()
	return err == nil && spans.FromStart()
}

// wholeLayer stands for all of a layer, where a span is named.
const wholeLayer = -1

// each calls fn for each part that may go by itself: a span, or wholeLayer.
func (l *candidates) each(fn func(v Layer, span int, w warmth, bytes int64)) {
	for _, v := range l.layers {
		s, inUse := v.Store(), l.inUse(v)
		if asWhole(v) {
			if _, bytes := s.Count(); !inUse && !l.fixed && bytes > 0 {
				fn(v, wholeLayer, warmthOf(false, s.LastUsed(), l.now), bytes)
			}
			continue
		}
		spans, err := v.Spans()
		if err != nil {
			continue // its reads say why
		}
		for i := range spans {
			if s.Present(i) {
				fn(v, i, warmthOf(inUse, s.LastRead(i), l.now), spans[i].Size)
			}
		}
	}
}

// threshold returns the lowest warmth such that what has it, or a lower one, is need bytes or more;
// where all together is less, the highest that there is.
func (l *candidates) threshold(need int64) (last warmth) {
	sizes := map[warmth]int64{}
	l.each(func(_ Layer, _ int, w warmth, bytes int64) { sizes[w] += bytes })
	for _, last = range slices.SortedFunc(maps.Keys(sizes), warmth.compare) {
		if need -= sizes[last]; need <= 0 {
			break
		}
	}
	return last
}

// evict lets need bytes go that are no warmer than limit, and returns how many went.
func (l *candidates) evict(ctx context.Context, need int64, limit warmth) (int64, error) {
	var errs []error
	var freed, planned int64
	chosen := map[Layer][]int{}
	// What is colder goes in any case, of the limit's own warmth as much as is needed.
	for _, exact := range []bool{false, true} {
		l.each(func(v Layer, span int, w warmth, bytes int64) {
			if c := w.compare(limit); c > 0 || (c == 0) != exact || planned >= need {
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
		if slices.Contains(spans, wholeLayer) {
			n, err = v.MakeLazy(ctx)
		} else {
			slices.Sort(spans)
			n, err = v.Data().Evict(spans)
		}
		if errors.Is(err, store.ErrSealed) {
			err = nil // it has become complete meanwhile
		}
		freed += n
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}
