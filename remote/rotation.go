package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// rotation leads one operation over the hosts of a registry: each once, the good ones first, then a pause, and again, until the
// operation succeeds, no host is left, or the context ends.
type rotation struct {
	client *Client
	stats  *counters
	what   string // for errors: "read sha256:… of docker.io/library/x"
	hosts  []entrant
	lacks  func(h *host, now time.Time) bool // whether h is known not to have it; may be nil
	fails  int                               // attempts in a row that brought nothing
	tries  int                               // attempts at all
	prev   *host
	last   error // of the latest attempt
	final  error // the most telling of those that took a host out
}

type entrant struct {
	*host
	tried, out bool
	wrong      int // answers that were not what was asked for
}

// maxWrong is how often a host may send content with a wrong digest before an operation gives it up.
const maxWrong = 3

func newRotation(c *Client, stats *counters, what string, hosts []*host) *rotation {
	r := &rotation{client: c, stats: stats, what: what, hosts: make([]entrant, len(hosts))}
	for i, h := range hosts {
		r.hosts[i].host = h
	}
	return r
}

// pick returns the host to ask next, after a pause where one is due.
func (r *rotation) pick(ctx context.Context) (*host, error) {
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", r.what, ended(ctx, r.last))
		}
		now := time.Now()
		var best *entrant
		var bestPenalty int
		left, wait := 0, r.client.cfg.MaxRetryAfter
		for i := range r.hosts {
			e := &r.hosts[i]
			if e.out {
				continue
			}
			left++
			penalty, notBefore := e.standing(now)
			if r.lacks != nil && r.lacks(e.host, now) {
				penalty += 4
			}
			d := min(notBefore.Sub(now), r.client.cfg.MaxRetryAfter)
			wait = min(wait, d)
			if !e.tried && d <= 0 && (best == nil || penalty < bestPenalty) {
				best, bestPenalty = e, penalty
			}
		}
		if left == 0 {
			return nil, fmt.Errorf("%s: %w", r.what, r.final)
		}
		if best != nil {
			best.tried = true
			if r.tries > 0 {
				r.stats.retried(best.host != r.prev)
			}
			r.tries++
			r.prev = best.host
			return best.host, nil
		}
		for i := range r.hosts {
			r.hosts[i].tried = false
		}
		if err := sleep(ctx, max(jitter(wait), r.backoff())); err != nil {
			return nil, fmt.Errorf("%s: %w", r.what, ended(ctx, r.last))
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

// failed notes that the attempt at h failed.
func (r *rotation) failed(ctx context.Context, h *host, err error) {
	if ctx.Err() != nil {
		return // the caller's will, not the host's fault
	}
	r.last = err
	r.fails++
	r.stats.failed(fmt.Errorf("%s: %w", r.what, err))
	out := isPermanent(err)
	for i := range r.hosts {
		e := &r.hosts[i]
		if e.host != h {
			continue
		}
		if errors.Is(err, ErrCorrupt) {
			e.wrong++
			out = out || e.wrong >= maxWrong
		}
		e.out = e.out || out
	}
	if out {
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
	h.failed(time.Now(), after)
}

// progress notes that n bytes came from h since it was picked: when it fails now, that is a new failure.
func (r *rotation) progress(h *host) {
	h.worked()
	r.fails = -1
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
