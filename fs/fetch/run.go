package fetch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// patience is how long one request may take. A registry that does not answer is tried for as long
// below; then others have their turn.
const patience = time.Minute

var errPatience = errors.New("no answer for a minute")

// forever is a wait that only a signal ends.
const forever = 365 * 24 * time.Hour

// Run fetches until ctx ends, and waits for what it has begun. It is called once.
func (s *Scheduler) Run(ctx context.Context) {
	var requests sync.WaitGroup
	defer requests.Wait()
	for ctx.Err() == nil {
		j, wait := s.next(ctx)
		if j == nil {
			pause(ctx, s.wake, wait)
			continue
		}
		s.throttle(ctx, j.run.Bytes)
		requests.Go(func() { s.do(ctx, j) })
	}
}

// pause waits for a signal, but no longer than d.
func pause(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-t.C:
	}
}

// throttle waits until the configured bandwidth allows a request of n bytes.
func (s *Scheduler) throttle(ctx context.Context, n int64) {
	if s.o.Bandwidth <= 0 {
		return
	}
	now := time.Now()
	if s.free.After(now) {
		pause(ctx, nil, s.free.Sub(now))
	} else {
		s.free = now
	}
	s.free = s.free.Add(time.Duration(float64(n) / float64(s.o.Bandwidth) * float64(time.Second)))
}

// place is where to look for something to fetch: a range of a layer's device.
type place struct {
	entry    *entry
	prio     line.Priority
	off, end int64
	replay   *Replay // nil: a fill
	todo     *part   // what is left of the replay's range
	spot     *spot   // of a fill: where its range comes from; nil: it is the next in the layer
	asked    int     // of the entry, when it was chosen
}

// job is one request.
type job struct {
	place
	run    layer.Missing
	cancel context.CancelFunc
}

// next returns the request to send now; if there is none, how long to wait for a signal.
func (s *Scheduler) next(ctx context.Context) (*job, time.Duration) {
	for ctx.Err() == nil {
		now := time.Now()
		p, expected, wait := s.choose(now)
		if p == nil {
			return nil, wait
		}
		l := p.entry.layer
		var err error
		for _, g := range expected {
			err = errors.Join(err, l.Expect(g.Off, g.Size))
		}
		var run layer.Missing
		if err == nil {
			run, err = l.Next(p.off, p.end, p.prio)
		}
		if j := s.begin(p, run, err, now); j != nil {
			return j, 0
		}
	}
	return nil, 0
}

// choose finds the place to look at next. Its entry then has one user more. expected is what is to
// be told to the layer before.
func (s *Scheduler) choose(now time.Time) (p *place, expected []Range, wait time.Duration) {
	if hold := s.o.Hold(); hold > 0 {
		return nil, nil, hold
	}
	s.o.Budget.Starts.Measure()
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = forever
	usable := func(e *entry) bool {
		if e.backoff.active(now) {
			wait = min(wait, e.backoff.until.Sub(now))
			return false
		}
		return true
	}
	if p = s.replayPlaceLocked(usable); p != nil {
		if s.running.replay >= s.o.ReplayRequests {
			return nil, nil, forever
		}
		expected = p.replay.meetLocked(p.entry)
	} else if s.running.fill < s.o.FillRequests {
		if p = s.fillPlaceLocked(usable); p != nil {
			if hold := s.o.Budget.Starts.FillWaits(); hold > 0 {
				return nil, nil, min(wait, hold)
			}
		}
	}
	if p != nil {
		p.entry.users.Add(1)
	}
	return p, expected, wait
}

// replayPlaceLocked returns the place of the replay whose turn it is; nil where replays have
// nothing to fetch now.
func (s *Scheduler) replayPlaceLocked(usable func(*entry) bool) *place {
	for i, r := range s.replays {
		for _, g := range r.todo {
			e := s.layers[g.Layer]
			if e == nil || !usable(e) {
				continue
			}
			// Replays take turns.
			s.replays = append(slices.Delete(s.replays, i, i+1), r)
			return &place{
				entry: e, prio: line.Replay, off: g.Off, end: g.Off + g.Size, replay: r, todo: g,
			}
		}
	}
	return nil
}

func (s *Scheduler) fillPlaceLocked(usable func(*entry) bool) *place {
	for _, p := range slices.Backward(s.spots) {
		if usable(p.entry) {
			return &place{entry: p.entry, prio: line.Near, off: p.off, end: p.end, spot: p}
		}
	}
	for _, e := range s.fills {
		size := e.layer.Size()
		if e.cursor >= size && e.filled == 0 {
			// The end of a pass. What is missing now has failed, or was in the hands of others.
			e.cursor = 0
			if !e.progress {
				e.backoff.failed(time.Now())
			}
			e.progress = false
		}
		if e.cursor < size && usable(e) {
			return &place{entry: e, prio: line.Background, off: e.cursor, end: size, asked: e.asked}
		}
	}
	return nil
}

// begin takes what the look at a place has found, and makes a job of it; nil where there is nothing
// to fetch.
func (s *Scheduler) begin(p *place, run layer.Missing, err error, now time.Time) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := p.entry
	if err != nil || e.forgotten || run.Size == 0 {
		e.users.Done()
	}
	switch {
	case e.forgotten:
		return nil
	case err != nil:
		s.failedLocked(e, err, now)
		return nil
	case run.Size == 0 && p.replay != nil:
		p.replay.advanceLocked(p.todo, p.end)
		return nil
	case p.spot != nil && run.Size == 0:
		s.pastLocked(p.spot, p.end)
		return nil
	case run.Size == 0 && p.off == 0:
		if p.asked == e.asked { // else something may have gone since it was looked at
			s.endFillLocked(e)
		}
		return nil
	case run.Size == 0:
		e.cursor = p.end
		return nil
	}
	if p.spot != nil {
		if end := e.underway(run.Off); end > run.Off {
			e.users.Done()
			s.pastLocked(p.spot, end)
			return nil
		}
	}
	j := &job{place: *p, run: run}
	e.jobs[j] = struct{}{}
	if p.replay != nil {
		p.replay.running++
		p.replay.advanceLocked(p.todo, run.Off+run.Size)
		s.running.replay++
		s.o.Budget.Starts.ReplayBegan()
		s.stats.ReplayRequests++
		return j
	}
	if p.spot != nil {
		s.pastLocked(p.spot, run.Off+run.Size)
	} else {
		e.cursor = run.Off + run.Size
	}
	e.filled++
	s.running.fill++
	s.stats.FillRequests++
	return j
}

// do sends a request and waits for it.
func (s *Scheduler) do(ctx context.Context, j *job) {
	e := j.entry
	defer e.users.Done()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errPatience)
	defer cancel()
	s.mu.Lock()
	j.cancel = cancel
	forgotten := e.forgotten
	s.mu.Unlock()
	var err error
	if !forgotten {
		err = e.layer.Fetch(ctx, j.run.Off, j.run.Size, j.prio)
	}
	s.end(ctx, j, err)
}

// end notes how a job went.
func (s *Scheduler) end(ctx context.Context, j *job, err error) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.signal()
	e, r := j.entry, j.replay
	delete(e.jobs, j)
	if r == nil {
		s.running.fill--
		e.filled--
	} else {
		s.running.replay--
		s.o.Budget.Starts.ReplayEnded()
		r.running--
		defer r.endLocked()
	}
	switch {
	case e.forgotten || errors.Is(context.Cause(ctx), context.Canceled):
	case err != nil:
		s.failedLocked(e, err, now)
		if r != nil && !e.stopped {
			again := &part{Range: Range{e.digest, j.run.Off, j.run.Size}, order: -1}
			r.todo = slices.Insert(r.todo, 0, again)
		}
	case r != nil:
		e.backoff.worked(now)
		s.stats.ReplayBytes += j.run.Bytes
	default:
		e.backoff.worked(now)
		e.progress = true
		s.stats.FillBytes += j.run.Bytes
	}
}

// failedLocked leaves a layer alone for a while; for good where its bytes are wrong.
func (s *Scheduler) failedLocked(e *entry, err error, now time.Time) {
	if errors.Is(err, index.ErrCorrupt) || errors.Is(err, line.ErrTooLarge) {
		if !e.stopped {
			s.log.Error("layer is not fetched any further: its bytes, or its index, are wrong", "layer", e.digest, "err", err)
		}
		e.stopped = true
		s.dropLocked(e)
		return
	}
	if !e.backoff.active(now) {
		s.log.Warn("layer cannot be fetched ahead at the moment", "layer", e.digest, "err", err)
	}
	e.backoff.failed(now)
}

// endFillLocked takes a layer that lacks nothing any more from those to fill.
func (s *Scheduler) endFillLocked(e *entry) {
	e.filling = false
	s.fills = slices.DeleteFunc(s.fills, func(o *entry) bool { return o == e })
	s.spots = slices.DeleteFunc(s.spots, func(p *spot) bool { return p.entry == e })
}

// dropLocked forgets what is still to be fetched of a layer.
func (s *Scheduler) dropLocked(e *entry) {
	s.endFillLocked(e)
	for _, r := range slices.Clone(s.replays) {
		r.dropLocked(e)
	}
}
