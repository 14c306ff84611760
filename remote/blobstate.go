package remote

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// absentFor is how long a host that did not have a blob comes last. A mirror that caches may
	// have it then.
	absentFor = 5 * time.Minute
	// suspectFor is how long a host that sent wrong bytes of a blob comes last, and is asked past
	// its caches.
	suspectFor = 10 * time.Minute
	// probeWait is how long a range waits for the answer to another, which tells whether a host
	// ignores ranges of the blob.
	probeWait = 5 * time.Second
	// maxServed is how many of the latest answers of a blob are remembered with where they came
	// from.
	maxServed = 32
	// maxBlame bounds how much worse than others a host can get.
	maxBlame = 16
)

// blobState is what is known of a blob in a repository, shared by the images of the repository.
type blobState struct {
	target target

	mu       sync.Mutex
	absent   map[*host]time.Time // hosts that did not have it, or refused it, come last until then
	suspects map[*host]suspicion
	served   []serving           // the latest last
	whole    map[*host]time.Time // hosts that have answered a range with the whole blob, until then
	ranged   map[*host]bool      // hosts that have honoured a range since
	probing  chan struct{}       // full while a host is asked that may do either; nil: never was
	refused  time.Time           // since then no host has had anything but refusals; zero: not so
	asked    time.Time           // when that was last found
}

// suspicion is what a host that sent wrong bytes is under.
type suspicion struct {
	times int
	until time.Time
}

// serving is an answer: bytes off to end of the blob came from host.
type serving struct {
	host     *host
	off, end int64
	seq      uint64 // in the order of all of the client's
}

// penalty is what speaks against asking h for the blob.
func (s *blobState) penalty(h *host, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	if now.Before(s.absent[h]) {
		n += penaltyLacks
	}
	if x := s.suspects[h]; now.Before(x.until) {
		n += penaltySuspect * min(x.times, maxBlame)
	}
	return n
}

// suspected tells whether h has sent wrong bytes of the blob.
func (s *blobState) suspected(h *host, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.suspects[h].until)
}

func (s *blobState) setAbsent(h *host, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.absent, func(_ *host, until time.Time) bool { return !now.Before(until) })
	if s.absent == nil {
		s.absent = map[*host]time.Time{}
	}
	s.absent[h] = now.Add(absentFor)
}

// serves notes an answer, and that the blob is not refused any more.
func (s *blobState) serves(v serving) {
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
func (s *blobState) ignored(h *host, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole == nil {
		s.whole = map[*host]time.Time{}
	}
	s.whole[h] = now.Add(noRangesFor)
	delete(s.ranged, h)
}

// honoured notes that h has answered a range with that range.
func (s *blobState) honoured(h *host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ranged[h] {
		return
	}
	if s.ranged == nil {
		s.ranged = map[*host]bool{}
	}
	s.ranged[h] = true
	delete(s.whole, h)
}

// ignores tells whether h is known to answer a range of the blob with all of it.
func (s *blobState) ignores(h *host, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.whole[h])
}

// honours tells whether h, or any host if h is nil, is known to honour ranges of the blob.
func (s *blobState) honours(h *host) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ranged[h] || h == nil && len(s.ranged) > 0
}

// probe waits until nobody else asks a host for a range that may be ignored, but not for long where
// a host does not answer. Pair it with release.
func (s *blobState) probe(ctx context.Context) (release func(), err error) {
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
func (s *blobState) latest(off, n int64) serving {
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
func (s *blobState) suspect(h *host, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.suspects, func(_ *host, x suspicion) bool { return !now.Before(x.until) })
	if s.suspects == nil {
		s.suspects = map[*host]suspicion{}
	}
	s.suspects[h] = suspicion{s.suspects[h].times + 1, now.Add(suspectFor)}
	s.target.forget()
}

// granted notes that the blob is not refused any more.
func (s *blobState) granted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = time.Time{}
}

// refusedFor notes that every host refuses the blob, and returns for how long that has been so.
// What was found more than memory ago does not count.
func (s *blobState) refusedFor(memory time.Duration, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused.IsZero() || now.Sub(s.asked) > memory {
		s.refused = now
	}
	s.asked = now
	return now.Sub(s.refused)
}
