package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// rotation leads one operation over the hosts that may answer it: each once, the good ones first,
// then a pause, and again, until the operation succeeds, no host is left, or the context ends.
type rotation struct {
	client *Client
	stats  *counters
	what   string // for errors: "read sha256:… of docker.io/library/x"
	hosts  []candidate
	fails  int // attempts in a row that brought nothing
	tries  int // attempts at all
	prev   *host
	last   error         // of the latest attempt
	final  error         // the most telling of those that took a host out
	since  time.Time     // the beginning, or when something last came
	giveUp time.Duration // how long after since an attempt may begin; 0: while the context lasts

	// small: no blob is asked for. When to ask again, as a host says, concerns this operation
	// alone.
	small bool
	// aside: of a look-up. That a host fails it concerns this operation alone, which ends at once
	// rather than to wait for a host until its time is over.
	aside bool

	// Each may be nil.
	// what speaks against a host besides how it does in general
	penalty func(e *candidate, now time.Time) int
	// the hosts as they are configured now; asked after each pause
	reload func(ctx context.Context) ([]candidate, bool)
	// whether it is over when no host is left; nil: it is
	endsWithoutHosts func(now time.Time) bool
}

// candidate is a host in a rotation.
type candidate struct {
	*host
	location   location // of a blob; zero for other things
	tried, out bool
	whole      bool      // answers ranges with the whole blob, and is not asked for any
	wrong      int       // answers that were not what was asked for
	notBefore  time.Time // as host.notBefore, for this operation alone
}

// What speaks against a host, the least first: each counts more than all before it together.
const (
	penaltyNoRanges = 1 << iota // ignores ranges
	penaltyFails                // has failed just now
	penaltyLacks                // did not have the blob, or refused it
	penaltySuspect              // has sent wrong bytes of the blob; times how often
)

// maxWrong is how often a host may send content with a wrong digest before an operation gives it
// up.
const maxWrong = 3

func newRotation(c *Client, stats *counters, what string, hosts []*host) *rotation {
	r := &rotation{
		client: c, stats: stats, what: what, hosts: make([]candidate, len(hosts)),
		since: time.Now(), giveUp: c.cfg.GiveUp,
	}
	for i, h := range hosts {
		r.hosts[i].host = h
	}
	return r
}

// pick returns the host to ask next, after a pause where one is due. It is valid until the next
// pick.
func (r *rotation) pick(ctx context.Context) (*candidate, error) {
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w (%s)", ended(ctx, r.last), r.what)
		}
		if r.over(0) {
			return nil, r.gaveUp()
		}
		best, left, wait := r.best(time.Now())
		if r.whole() && (best == nil || best.failing(time.Now())) {
			return nil, errNoRanges // rather than wait for a host that may honour them
		}
		if best != nil {
			best.tried = true
			if r.tries > 0 {
				r.stats.retried(best.host != r.prev)
			}
			r.tries++
			r.prev = best.host
			return best, nil
		}
		if left == 0 && (r.endsWithoutHosts == nil || r.endsWithoutHosts(time.Now())) {
			return nil, fmt.Errorf("%w (%s)", r.final, r.what)
		}
		pause := max(jitter(wait), r.backoff())
		if end, ok := ctx.Deadline(); ok && r.aside && wait > time.Until(end) {
			return nil, fmt.Errorf("%w (%s)", or(r.last, errBusy), r.what)
		}
		if r.over(pause) {
			return nil, r.gaveUp()
		}
		if err := r.pause(ctx, pause); err != nil {
			return nil, fmt.Errorf("%w (%s)", ended(ctx, r.last), r.what)
		}
		r.again(ctx, left == 0)
	}
}

// whole says whether a host has the blob that is not asked because it ignores ranges.
func (r *rotation) whole() bool {
	return slices.ContainsFunc(r.hosts, func(e candidate) bool { return e.whole && !e.out })
}

// over says whether no attempt may begin any more after a pause of d.
func (r *rotation) over(d time.Duration) bool {
	return r.giveUp > 0 && r.last != nil && time.Since(r.since)+d > r.giveUp
}

func (r *rotation) gaveUp() error {
	took := time.Since(r.since).Round(time.Second)
	return fmt.Errorf("%s: given up after %v: %w", r.what, took, r.last)
}

// best returns the best host that this round has not tried yet, nil if there is none; how many are
// left at all, and how long to wait for one of these at least.
func (r *rotation) best(now time.Time) (best *candidate, left int, wait time.Duration) {
	limit := r.client.cfg.MaxRetryAfter
	wait = limit
	least := 0
	for i := range r.hosts {
		e := &r.hosts[i]
		if e.out {
			continue
		}
		left++
		penalty, notBefore := e.standing(now)
		if r.penalty != nil {
			penalty += r.penalty(e, now)
		}
		d := min(max(notBefore.Sub(now), e.notBefore.Sub(now)), limit)
		wait = min(wait, d)
		if !e.tried && !e.whole && d <= 0 && (best == nil || penalty < least) {
			best, least = e, penalty
		}
	}
	if left == 0 {
		wait = 0
	}
	return best, left, wait
}

// again begins a round. back takes those in again that are out.
func (r *rotation) again(ctx context.Context, back bool) {
	if r.reload != nil {
		if hosts, ok := r.reload(ctx); ok {
			for i := range hosts {
				for _, old := range r.hosts {
					if hosts[i].host == old.host && hosts[i].location == old.location {
						hosts[i] = old
					}
				}
			}
			r.hosts = hosts
		}
	}
	for i := range r.hosts {
		e := &r.hosts[i]
		e.tried = false
		if back {
			e.out, e.wrong = false, 0
		}
	}
}

// backoff doubles from MinBackoff to MaxBackoff with each failure in a row; half of it is random.
func (r *rotation) backoff() time.Duration {
	if r.fails <= 0 {
		return 0
	}
	cfg := &r.client.cfg
	d := cfg.MaxBackoff
	if n := r.fails - 1; n < 20 {
		d = min(cfg.MinBackoff<<n, cfg.MaxBackoff)
	}
	return d/2 + rand.N(d/2+1)
}

// jitter adds up to a tenth, so that those who were told the same time do not all come at once.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + rand.N(d/10+1)
}

// failed notes that the attempt at e failed.
func (r *rotation) failed(ctx context.Context, e *candidate, err error) {
	if ctx.Err() != nil {
		return // the caller's will, not the host's fault
	}
	r.last = err
	r.fails++
	r.stats.failed(fmt.Errorf("%w (%s)", err, r.what))
	if errors.Is(err, ErrCorrupt) {
		e.wrong++
	}
	if isPermanent(err) || e.wrong >= maxWrong {
		e.out = true
		// "No access" says more than "not here", and a mirror that has nothing says least.
		if r.final == nil || !errors.Is(err, ErrNotFound) {
			r.final = err
		}
		return
	}
	var s *statusError
	var after time.Duration
	if errors.As(err, &s) {
		after = min(s.retryAfter, r.client.cfg.MaxRetryAfter)
	}
	now := time.Now()
	if r.small {
		e.notBefore, after = now.Add(after), 0
	}
	if !r.aside {
		e.failed(now, after)
	}
	if r.client.cfg.Notice != nil {
		r.client.cfg.Notice(fmt.Sprintf("%s: %v; it is tried again", r.what, err))
	}
}

// progress notes that bytes came from h since it was picked: when it fails now, that is a new
// failure.
func (r *rotation) progress(h *host) {
	h.worked()
	r.fails, r.since = -1, time.Now()
}

// pause waits for d, less if one of the hosts answers somebody else meanwhile.
func (r *rotation) pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	began := time.Now()
	woken := make(chan struct{}, 1)
	wake := woken
	for _, e := range r.hosts {
		e.await(woken)
	}
	defer func() {
		for _, e := range r.hosts {
			e.leave(woken)
		}
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
			// Not all at once, and not more often than MinBackoff says where every second answer is
			// a failure.
			soon := r.client.cfg.MinBackoff/2 + rand.N(r.client.cfg.MinBackoff/2+1)
			t.Reset(min(soon, max(0, d-time.Since(began))))
			wake = nil
		}
	}
}
