package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// canName is what a host can that may say which content a name stands for.
	canName = docker.HostCapabilityPull | docker.HostCapabilityResolve
	// nextHostAfter is how long a host is asked for referrers before the next one is asked, too.
	nextHostAfter = time.Second
	// doubtedFor is how long somebody who has let a look-up wait in vain is given no more than
	// doubtedTimeout.
	doubtedFor, doubtedTimeout = time.Hour, 500 * time.Millisecond
	// probeTimeout is how long it is asked meanwhile while nobody waits.
	probeTimeout = 30 * time.Second
)

var (
	errNoList    = errors.New("no list of referrers came in time")
	errOvertaken = errors.New("another host has answered")
)

// listing is one question for referrers, to several hosts: those that may say which content a name
// stands for, in their order, the next one as soon as one fails, has nothing to show or takes
// longer than nextHostAfter. All of it takes no longer than Config.ListTimeout.
//
// A host that lets a listing wait in vain is doubted for an hour. It is asked then after the
// others, and nobody waits longer than doubtedTimeout. It is trusted again when it answers, if only
// after that. Nothing else of a listing is held against a host in other requests, but that it could
// not be connected to.
type listing struct {
	image   *Image
	subject digest.Digest
	types   []string
}

// ask asks the hosts until one of them has referrers, or the registry itself says that it has none.
// An error says that somebody did not answer, and nobody else had any.
func (q *listing) ask(caller context.Context, hosts []*host) ([]ocispec.Descriptor, error) {
	if len(hosts) == 0 {
		return nil, fmt.Errorf("no host of %s may be asked: %w", q.image.repo.registry, ErrNotFound)
	}
	ctx, cancel := context.WithTimeoutCause(caller, q.image.client.cfg.ListTimeout, errNoList)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	type answer struct {
		host  *host
		found []ocispec.Descriptor
		err   error
	}
	answers, troubles := make(chan answer, len(hosts)), make(chan struct{}, len(hosts))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer stop(errOvertaken)
	var errs []error
	left := byTrust(hosts)
	for pending := 0; len(left) > 0 || pending > 0; {
		var later <-chan time.Time
		if len(left) > 0 {
			h := left[0]
			left = left[1:]
			pending++
			asking.Go(func() {
				found, err := q.from(ctx, h, sync.OnceFunc(func() { troubles <- struct{}{} }))
				answers <- answer{h, found, err}
			})
		}
		if len(left) > 0 {
			later = time.After(nextHostAfter)
		}
		select {
		case a := <-answers:
			pending--
			// A mirror that caches may have the image without what refers to it.
			if len(a.found) > 0 || a.err == nil && a.host.namespace == "" {
				return a.found, nil
			}
			if a.err != nil {
				errs = append(errs, a.err)
			}
		case <-troubles:
		case <-later:
		}
	}
	if caller.Err() != nil {
		return nil, context.Cause(caller)
	}
	return nil, errors.Join(errs...)
}

// from is answer, and notes what the host's answer says of the host.
func (q *listing) from(
	ctx context.Context, h *host, troubled func(),
) ([]ocispec.Descriptor, error) {
	start := time.Now()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", h.name, context.Cause(ctx))
	}
	if h.lists.doubted(start) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, doubtedTimeout, errNoList)
		defer cancel()
	}
	var connected atomic.Bool
	found, err := q.answer(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}), h, troubled)
	now := time.Now()
	cause := context.Cause(ctx)
	overtaken := errors.Is(cause, errOvertaken) && now.Sub(start) >= nextHostAfter
	switch {
	case errors.Is(cause, errNoList) || overtaken:
		h.lists.doubt(now)
		if !connected.Load() {
			h.failed(now, 0)
		}
		h.lists.probe(ctx, q.image.client, func(ctx context.Context) error {
			ctx, once := context.WithCancel(ctx)
			defer once()
			_, err := q.answer(ctx, h, once)
			return err
		})
	case cause == nil && err == nil:
		h.lists.trust()
	}
	return found, err
}

// byTrust puts hosts that are doubted behind the others.
func byTrust(hosts []*host) []*host {
	var trusted, doubted []*host
	now := time.Now()
	for _, h := range hosts {
		if h.lists.doubted(now) {
			doubted = append(doubted, h)
		} else {
			trusted = append(trusted, h)
		}
	}
	return append(trusted, doubted...)
}

// doubt remembers that somebody was waited for in vain. The zero value is trust.
type doubt struct {
	probing atomic.Bool

	mu    sync.Mutex
	until time.Time
}

func (d *doubt) doubted(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return now.Before(d.until)
}

// doubt begins the hour, unless one has begun.
func (d *doubt) doubt(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !now.Before(d.until) {
		d.until = now.Add(doubtedFor)
	}
}

func (d *doubt) trust() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = time.Time{}
}

// probe has who is doubted asked once more, in the background and with more time: credentials may
// take it, or the way. An answer brings back the trust.
func (d *doubt) probe(ctx context.Context, c *Client, ask func(ctx context.Context) error) {
	if !d.probing.CompareAndSwap(false, true) {
		return
	}
	c.goes(ctx, func(ctx context.Context) {
		defer d.probing.Store(false)
		ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errNoList)
		defer cancel()
		if ask(ctx) == nil {
			d.trust()
		}
	})
}

// Question is something that a pull asks a registry first, and can do without.
type Question uint8

// The questions.
const (
	// of a blob whose bytes are worth waiting for only if they come soon
	AboutBlob     Question = iota
	AboutManifest          // of a manifest, the same
	questions
)

// Patience returns how long to wait for the answer to a question of the image's registry: most, or
// half a second if the registry has let somebody wait for one in vain within an hour. Answered or
// Unanswered is to be told what became of it.
func (i *Image) Patience(ctx context.Context, q Question, most time.Duration) time.Duration {
	if d := i.doubt(ctx, q); d != nil && d.doubted(time.Now()) {
		return min(most, doubtedTimeout)
	}
	return most
}

// Answered notes that the image's registry has answered a question in time.
func (i *Image) Answered(ctx context.Context, q Question) {
	if d := i.doubt(ctx, q); d != nil {
		d.trust()
	}
}

// Unanswered notes that the image's registry has not answered a question in time. It is asked again
// in the background, by ask: if it answers then, it gets as much time as ever the next time.
func (i *Image) Unanswered(ctx context.Context, q Question, ask func(ctx context.Context) error) {
	if d := i.doubt(ctx, q); d != nil {
		d.doubt(time.Now())
		d.probe(ctx, i.client, ask)
	}
}

func (i *Image) doubt(ctx context.Context, q Question) *doubt {
	set, err := i.client.hostsOf(ctx, i.repo.registry)
	if err != nil {
		return nil // whoever asks for something is told
	}
	return &set.answers[q]
}
