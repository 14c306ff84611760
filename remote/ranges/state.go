package ranges

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/remote/registry"
)

const (
	// absentFor is how long a host that did not have a blob comes last. A mirror that caches may
	// have it then.
	absentFor = 5 * time.Minute
	// suspectFor is how long a host that sent wrong bytes of a blob comes last, and is asked past
	// its caches.
	suspectFor = 10 * time.Minute
	// ignoredFor is how long a host that ignored a range of a blob is not asked for another.
	ignoredFor = 5 * time.Minute
	// probeWait is how long a range waits for the answer to another, which tells whether a host
	// ignores ranges of the blob.
	probeWait = 5 * time.Second
	// maxServed is how many of the latest answers of a blob are remembered with where they came
	// from.
	maxServed = 32
	// maxBlame bounds how much worse than others a host can get.
	maxBlame = 16
)

// state is what is known of a blob in a repository, shared by the images of the repository.
type state struct {
	target registry.Target

	mu       sync.Mutex
	absent   map[*registry.Host]time.Time // hosts that did not have it, or refused it, come last until then
	suspects map[*registry.Host]suspicion
	served   []serving                    // the latest last
	whole    map[*registry.Host]time.Time // hosts that have answered a range with the whole blob, until then
	ranged   map[*registry.Host]bool      // hosts that have honoured a range since
	probing  chan struct{}                // full while a host is asked that may do either; nil: never was
	refused  time.Time                    // since then no host has had anything but refusals; zero: not so
	asked    time.Time                    // when that was last found
}

// suspicion is what a host that sent wrong bytes is under.
type suspicion struct {
	times int
	until time.Time
}

// serving is an answer: bytes off to end of the blob came from host.
type serving struct {
	host     *registry.Host
	off, end int64
	seq      uint64 // in the order of all of the client's
}

// penalty is what speaks against asking h for the blob.
func (s *state) penalty(h *registry.Host, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	if now.Before(s.absent[h]) {
		n += registry.PenaltyLacks
	}
	if x := s.suspects[h]; now.Before(x.until) {
		n += registry.PenaltySuspect * min(x.times, maxBlame)
	}
	return n
}

// suspected tells whether h has sent wrong bytes of the blob.
func (s *state) suspected(h *registry.Host, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.suspects[h].until)
}

func (s *state) setAbsent(h *registry.Host, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.absent, func(_ *registry.Host, until time.Time) bool { return !now.Before(until) })
	if s.absent == nil {
		s.absent = map[*registry.Host]time.Time{}
	}
	s.absent[h] = now.Add(absentFor)
}

// serves notes an answer, and that the blob is not refused any more.
func (s *state) serves(v serving) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = time.Time{}
	if n := len(s.served); n == maxServed {
		copy(s.served, s.served[1:])
		s.served = s.served[:n-1]
	}
	s.served = append(s.served, v)
}

// ignored notes that h has answered a range with the whole blob.
func (s *state) ignored(h *registry.Host, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole == nil {
		s.whole = map[*registry.Host]time.Time{}
	}
	s.whole[h] = now.Add(ignoredFor)
	delete(s.ranged, h)
}

// honoured notes that h has answered a range with that range.
func (s *state) honoured(h *registry.Host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ranged[h] {
		return
	}
	if s.ranged == nil {
		s.ranged = map[*registry.Host]bool{}
	}
	s.ranged[h] = true
	delete(s.whole, h)
}

// ignores tells whether h is known to answer a range of the blob with all of it.
func (s *state) ignores(h *registry.Host, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.whole[h])
}

// honours tells whether h, or any host if h is nil, is known to honour ranges of the blob.
func (s *state) honours(h *registry.Host) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ranged[h] || h == nil && len(s.ranged) > 0
}

// probe waits until nobody else asks a host for a range that may be ignored, but not for long where
// a host does not answer. Pair it with release.
func (s *state) probe(ctx context.Context) (release func(), err error) {
	s.mu.Lock()
	if s.probing == nil {
		s.probing = make(chan struct{}, 1)
	}
	ch := s.probing
	s.mu.Unlock()
	t := time.NewTimer(probeWait)
	defer t.Stop()
	select {
	case ch <- struct{}{}:
		return func() { <-ch }, nil
	case <-t.C:
		return func() {}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// latest returns the last answer with any of the n bytes from off on; its seq is 0 if none is
// remembered.
func (s *state) latest(off, n int64) serving {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range slices.Backward(s.served) {
		if v.off < off+n && off < v.end {
			return v
		}
	}
	return serving{}
}

// suspect blames h for wrong bytes: it comes last, is asked past its caches, and where it
// redirected to is forgotten.
func (s *state) suspect(h *registry.Host, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.suspects, func(_ *registry.Host, x suspicion) bool { return !now.Before(x.until) })
	if s.suspects == nil {
		s.suspects = map[*registry.Host]suspicion{}
	}
	s.suspects[h] = suspicion{s.suspects[h].times + 1, now.Add(suspectFor)}
	s.target.Forget()
}

// granted notes that the blob is not refused any more.
func (s *state) granted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = time.Time{}
}

// refusedFor notes that every host refuses the blob, and returns for how long that has been so.
// What was found more than memory ago does not count.
func (s *state) refusedFor(memory time.Duration, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused.IsZero() || now.Sub(s.asked) > memory {
		s.refused = now
	}
	s.asked = now
	return now.Sub(s.refused)
}
