package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Rotation leads one operation over the hosts that may answer it: each once, the good ones first,
// then a pause, and again, until the operation succeeds, no host is left, or the context ends.
// Repository.Rotation makes it.
type Rotation struct {
	What  string // for errors: "read sha256:… of docker.io/library/x"
	Hosts []Candidate
	// Small says that no blob is asked for: when to ask again, as a host says, concerns this
	// operation alone.
	Small bool
	// Aside says that it is of a look-up: that a host fails it concerns this operation alone, which
	// ends at once rather than to wait for a host until its time is over.
	Aside bool
	// GiveUp is how long after something last came an attempt may begin; 0: while the context
	// lasts.
	GiveUp time.Duration

	// Each may be nil.
	// Penalty is what speaks against a host besides how it does in general.
	Penalty func(e *Candidate, now time.Time) int
	// Reload returns the hosts as they are configured now. It is called after each pause.
	Reload func(ctx context.Context) ([]Candidate, error)
	// Ends says whether it is over when no host is left; nil: it is.
	Ends func(now time.Time) bool
	// Told is told why it waits, when every host has failed.
	Told func(error)

	client *Client
	fails  int // attempts in a row that brought nothing
	tries  int // attempts at all
	prev   *Host
	last   error     // of the latest attempt
	final  error     // the most telling of those that took a host out
	since  time.Time // the beginning, or when something last came
}

// Candidate is a host in a rotation.
type Candidate struct {
	*Host
	Of    *Repository // what it is asked of
	Whole bool        // answers ranges with the whole blob, and is not asked for any

	tried, out bool
	wrong      int       // answers that were not what was asked for
	notBefore  time.Time // as Host.notBefore, for this operation alone
}

// What speaks against a host, the least first: each counts more than all before it together.
const (
	penaltyNoRanges = 1 << iota // ignores ranges
	penaltyFails                // has failed just now
	PenaltyLacks                // did not have the blob, or refused it
	PenaltySuspect              // has sent wrong bytes of the blob; times how often
)

// maxWrong is how often a host may send content with a wrong digest before an operation gives it
// up.
const maxWrong = 3

// ErrNoRanges says that no host is left that may honour ranges.
var ErrNoRanges = errors.New("every host ignores ranges")

// Rotation returns a rotation over hosts of the repository; what it is for is told in errors.
func (r *Repository) Rotation(what string, hosts []*Host) *Rotation {
	out := &Rotation{
		client: r.client, What: what, since: time.Now(), GiveUp: r.client.GiveUp,
	}
	for _, h := range hosts {
		out.Hosts = append(out.Hosts, Candidate{Host: h, Of: r})
	}
	return out
}

// Do has do ask one host after the other until it returns no error. told, unless nil, is called
// when an attempt fails that is made again.
func (r *Rotation) Do(ctx context.Context, told func(), do func(h *Host) error) error {
	for {
		e, err := r.Pick(ctx)
		if err != nil {
			return err
		}
		if err = do(e.Host); err == nil {
			e.Worked()
			return nil
		}
		r.Failed(ctx, e, err)
		if told != nil && !IsPermanent(err) {
			told()
		}
	}
}

// Pick returns the host to ask next, after a pause where one is due. It is valid until the next
// Pick.
func (r *Rotation) Pick(ctx context.Context) (*Candidate, error) {
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w (%s)", ended(ctx, r.last), r.What)
		}
		if r.over(0) {
			return nil, r.gaveUp()
		}
		best, left, wait := r.best(time.Now())
		if r.whole() && (best == nil || best.failing(time.Now())) {
			return nil, ErrNoRanges // rather than wait for a host that may honour them
		}
		if best != nil {
			best.tried = true
			if r.tries > 0 {
				r.client.stats.retried(best.Host != r.prev)
			}
			r.tries++
			r.prev = best.Host
			return best, nil
		}
		if left == 0 && (r.Ends == nil || r.Ends(time.Now())) {
			return nil, fmt.Errorf("%w (%s)", r.final, r.What)
		}
		pause := max(jitter(wait), r.backoff())
		if end, ok := ctx.Deadline(); ok && r.Aside && wait > time.Until(end) {
			return nil, fmt.Errorf("%w (%s)", cmp.Or(r.last, errBusy), r.What)
		}
		if r.over(pause) {
			return nil, r.gaveUp()
		}
		if why := r.last; r.Told != nil && why != nil {
			if left == 0 {
				why = r.final
			}
			r.Told(why)
		}
		if err := r.pause(ctx, pause); err != nil {
			return nil, fmt.Errorf("%w (%s)", ended(ctx, r.last), r.What)
		}
		r.again(ctx, left == 0)
	}
}

// whole says whether a host has the blob that is not asked because it ignores ranges.
func (r *Rotation) whole() bool {
	return slices.ContainsFunc(r.Hosts, func(e Candidate) bool { return e.Whole && !e.out })
}

// over says whether no attempt may begin any more after a pause of d.
func (r *Rotation) over(d time.Duration) bool {
	return r.GiveUp > 0 && r.last != nil && time.Since(r.since)+d > r.GiveUp
}

func (r *Rotation) gaveUp() error {
	took := time.Since(r.since).Round(time.Second)
	return fmt.Errorf("%s: given up after %v: %w", r.What, took, r.last)
}

// best returns the best host that this round has not tried yet, nil if there is none; how many are
// left at all, and how long to wait for one of these at least.
func (r *Rotation) best(now time.Time) (best *Candidate, left int, wait time.Duration) {
	wait = maxRetryAfter
	least := 0
	for i := range r.Hosts {
		e := &r.Hosts[i]
		if e.out {
			continue
		}
		left++
		penalty, notBefore := e.standing(now)
		if r.Penalty != nil {
			penalty += r.Penalty(e, now)
		}
		d := min(max(notBefore.Sub(now), e.notBefore.Sub(now)), maxRetryAfter)
		wait = min(wait, d)
		if !e.tried && !e.Whole && d <= 0 && (best == nil || penalty < least) {
			best, least = e, penalty
		}
	}
	if left == 0 {
		wait = 0
	}
	return best, left, wait
}

// again begins a round. back takes those in again that are out.
func (r *Rotation) again(ctx context.Context, back bool) {
	if r.Reload != nil {
		hosts, err := r.Reload(ctx)
		switch {
		case err == nil:
			for i := range hosts {
				for _, old := range r.Hosts {
					if hosts[i].Host == old.Host && hosts[i].Of == old.Of {
						hosts[i] = old
					}
				}
			}
			r.Hosts = hosts
		case len(r.Hosts) == 0:
			r.NoHosts(err)
		}
	}
	r.Untried()
	for i := range r.Hosts {
		if e := &r.Hosts[i]; back {
			e.out, e.wrong = false, 0
		}
	}
}

// NoHosts notes why no host is known: it may be known when they are reloaded.
func (r *Rotation) NoHosts(err error) {
	r.last, r.final = err, err
	r.fails++
}

// Untried has every host be asked again.
func (r *Rotation) Untried() {
	for i := range r.Hosts {
		r.Hosts[i].tried = false
	}
}

// backoff doubles from MinBackoff to MaxBackoff with each failure in a row; half of it is random.
func (r *Rotation) backoff() time.Duration {
	if r.fails <= 0 {
		return 0
	}
	d := r.client.MaxBackoff
	if n := r.fails - 1; n < 20 {
		d = min(r.client.MinBackoff<<n, d)
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

// Failed notes that the attempt at e failed.
func (r *Rotation) Failed(ctx context.Context, e *Candidate, err error) {
	if ctx.Err() != nil {
		return // the caller's will, not the host's fault
	}
	r.last = err
	r.fails++
	if errors.Is(err, ErrCorrupt) {
		e.wrong++
	}
	if IsPermanent(err) || e.wrong >= maxWrong {
		e.out = true
		// "No access" says more than "not here", and a mirror that has nothing says least.
		if r.final == nil || !errors.Is(err, ErrNotFound) {
			r.final = err
		}
		return
	}
	var s *StatusError
	var after time.Duration
	if errors.As(err, &s) {
		after = min(s.retryAfter, maxRetryAfter)
	}
	now := time.Now()
	if r.Small {
		e.notBefore, after = now.Add(after), 0
	}
	if !r.Aside {
		e.Failed(now, after)
	}
	if r.client.Notice != nil {
		r.client.Notice(fmt.Sprintf("%s: %v; it is tried again", r.What, err))
	}
}

// Progress notes that h has sent enough for its next failure to be a new one: no pause follows it.
func (r *Rotation) Progress(h *Host) {
	h.Worked()
	r.fails, r.since = -1, time.Now()
}

// Some notes that a few bytes came: the pause after the next failure is the shortest.
func (r *Rotation) Some() { r.fails = 0 }

// pause waits for d, less if one of the hosts answers somebody else meanwhile.
func (r *Rotation) pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	began := time.Now()
	woken := make(chan struct{}, 1)
	wake := woken
	for _, e := range r.Hosts {
		e.await(woken)
	}
	defer func() {
		for _, e := range r.Hosts {
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
			soon := r.client.MinBackoff/2 + rand.N(r.client.MinBackoff/2+1)
			t.Reset(min(soon, max(0, d-time.Since(began))))
			wake = nil
		}
	}
}
