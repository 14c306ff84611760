package ranges

import (
	"context"
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

// state is what is known of a blob in a repository, shared by all who read it there.
type state struct {
	target registry.Target

	mu      sync.Mutex
	hosts   map[*registry.Host]record
	served  []serving     // the latest last
	probing chan struct{} // full while a host is asked that may ignore ranges; nil: never was
	refused time.Time     // since then no host has had anything but refusals; zero: not so
	asked   time.Time     // when that was last found
}

// record is what a host has done when it was asked for the blob.
type record struct {
	absent    time.Time // it did not have it, or refused it: it comes last until then
	blamed    int       // how often it has sent wrong bytes
	suspected time.Time // because of that it comes last, and is asked past its caches, until then
	whole     time.Time // it answers ranges with the whole blob until then
	ranged    bool      // it has honoured a range since it last did not
}

// serving is an answer: bytes off to end of the blob came from host.
type serving struct {
	host     *registry.Host
	off, end int64
	seq      uint64 // in the order of all of the client's
}

// about returns what h has done.
func (s *state) about(h *registry.Host) record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts[h]
}

// note changes what is known of h.
func (s *state) note(h *registry.Host, change func(r *record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hosts == nil {
		s.hosts = map[*registry.Host]record{}
	}
	r := s.hosts[h]
	change(&r)
	s.hosts[h] = r
}

// penalty is what speaks against asking the host for the blob.
func (r record) penalty(now time.Time) int {
	n := 0
	if now.Before(r.absent) {
		n += registry.PenaltyLacks
	}
	if now.Before(r.suspected) {
		n += registry.PenaltySuspect * min(r.blamed, maxBlame)
	}
	return n
}

// blame notes that the host has sent wrong bytes.
func (r *record) blame(now time.Time) {
	if !now.Before(r.suspected) {
		r.blamed = 0
	}
	r.blamed++
	r.suspected = now.Add(suspectFor)
}

// honoured tells whether any host is known to honour ranges of the blob.
func (s *state) honoured() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.hosts {
		if r.ranged {
			return true
		}
	}
	return false
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
