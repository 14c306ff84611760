package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote/registry"
)

// nextHostAfter is how long a host is asked for referrers before the next one is asked, too.
const nextHostAfter = time.Second

var (
	errNoList    = errors.New("no list of referrers came in time")
	errOvertaken = errors.New("another host has answered")
)

// listing is one question for referrers, to several hosts: those that may say which content a name
// stands for, in their order, the next one as soon as one fails, has nothing to show or takes
// longer than nextHostAfter. All of it takes no longer than Config.ListTimeout.
//
// A host that lets a listing wait in vain is doubted for an hour. It is asked then after the
// others, and nobody waits longer than registry.DoubtedTimeout. It is trusted again when it answers, if only
// after that. Nothing else of a listing is held against a host in other requests, but that it could
// not be connected to.
type listing struct {
	image   *Image
	subject digest.Digest
	types   []string
}

// ask asks the hosts until one of them has referrers, or the registry itself says that it has none.
// An error says that somebody did not answer, and nobody else had any.
func (q *listing) ask(caller context.Context, hosts []*registry.Host) ([]ocispec.Descriptor, error) {
	if len(hosts) == 0 {
		return nil, fmt.Errorf("no host of %s may be asked: %w", q.image.repo.Registry(), ErrNotFound)
	}
	ctx, cancel := context.WithTimeoutCause(caller, q.image.client.registries.ListTimeout, errNoList)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	type answer struct {
		host  *registry.Host
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
			if len(a.found) > 0 || a.err == nil && a.host.Namespace == "" {
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
	ctx context.Context, h *registry.Host, troubled func(),
) ([]ocispec.Descriptor, error) {
	start := time.Now()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, context.Cause(ctx))
	}
	if h.Lists.Doubted() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, registry.DoubtedTimeout, errNoList)
		defer cancel()
	}
	var connected atomic.Bool
	found, err := q.answer(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}), h, troubled)
	cause := context.Cause(ctx)
	overtaken := errors.Is(cause, errOvertaken) && time.Since(start) >= nextHostAfter
	switch {
	case errors.Is(cause, errNoList) || overtaken:
		if !connected.Load() {
			h.Failed(time.Now(), 0)
		}
		h.Lists.Doubt(ctx, q.image.client.registries, func(ctx context.Context) error {
			ctx, once := context.WithCancel(ctx)
			defer once()
			_, err := q.answer(ctx, h, once)
			return err
		})
	case cause == nil && err == nil:
		h.Lists.Trust()
	}
	return found, err
}

// byTrust puts hosts that are doubted behind the others.
func byTrust(hosts []*registry.Host) []*registry.Host {
	var trusted, doubted []*registry.Host
	for _, h := range hosts {
		if h.Lists.Doubted() {
			doubted = append(doubted, h)
		} else {
			trusted = append(trusted, h)
		}
	}
	return append(trusted, doubted...)
}

// Question is something that a pull asks a registry first, and can do without.
type Question = registry.Question

// The questions.
const (
	AboutBlob     = registry.AboutBlob
	AboutManifest = registry.AboutManifest
)

// Patience returns how long to wait for the answer to a question of the image's registry: most, or
// half a second if the registry has let somebody wait for one in vain within an hour. Answered or
// Unanswered is to be told what became of it.
func (i *Image) Patience(ctx context.Context, q Question, most time.Duration) time.Duration {
	set, err := i.repo.Hosts(ctx)
	if err == nil && set.Answers[q].Doubted() {
		return min(most, registry.DoubtedTimeout)
	}
	return most
}

// Answered notes that the image's registry has answered a question in time.
func (i *Image) Answered(ctx context.Context, q Question) {
	if set, err := i.repo.Hosts(ctx); err == nil {
		set.Answers[q].Trust()
	}
}

// Unanswered notes that the image's registry has not answered a question in time. It is asked again
// in the background, by ask: if it answers then, it gets as much time as ever the next time.
func (i *Image) Unanswered(ctx context.Context, q Question, ask func(ctx context.Context) error) {
	if set, err := i.repo.Hosts(ctx); err == nil {
		set.Answers[q].Doubt(ctx, i.client.registries, ask)
	}
}
