package registry

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"

	"github.com/mica-snapshotter/mica/remote/creds"
)

const (
	tokenTimeout = 20 * time.Second       // for all requests that one token takes
	tokenPause   = 500 * time.Millisecond // how long a token server that failed is not asked
	deniedFor    = time.Second            // how long a refusal stands; twice as long each time
	deniedAtMost = 10 * time.Second       // and at most
	// how often other credentials are looked for while a refusal stands
	lookEvery = time.Second
)

// session is the authorization of one scope at one host, shared by all requests that need it.
//
// The protocol's parts (challenges, token requests) are containerd's. Its authorizer is not used
// whole: it keeps a failed token request's error for ever, runs a shared token request under
// whichever caller's context came first, and asks for every repository together with the one it saw
// first.
type session struct {
	host       *Host
	repository string // as in image references: "docker.io/library/debian"
	scope      string
	creds      func(ctx context.Context, host, repository string) ([]creds.Credential, error)
	agent      string

	tokenTimeout time.Duration // for all requests that one token takes

	mu        sync.Mutex
	busy      *flight // the request that finds out or renews; nil: none under way
	known     bool    // an answer has been seen, so the challenge, if there is one, is known
	challenge *auth.Challenge
	grant     *grant
	down      error     // why the token server gave no answer
	downUntil time.Time // and until when it is not asked

	// A refusal, of a token (denied) or of a request with a new one (denied is nil). See refusalStands.
	denied   error
	deniedBy []creds.Credential // that were refused
	deniedAt time.Time
	denials  int // with less than a minute between them
	until    time.Time
	lookedAt time.Time // when other credentials were last looked for
}

// flight is one request for which others wait. err is set before done is closed.
type flight struct {
	done chan struct{}
	err  error // theirs as well
}

// grant is what a session sends along. Immutable.
type grant struct {
	header       string
	expires      time.Time        // zero: unknown, the host will say
	by           creds.Credential // zero: anonymous
	whyAnonymous error            // why it is anonymous though there are credentials; else nil
}

// The actions of a token's scope (https://distribution.github.io/distribution/spec/auth/scope/).
const (
	ActionPull   = "pull"
	ActionPush   = "pull,push"
	ActionDelete = "delete"
)

// session returns the shared session of the host for actions in a repository.
func (h *Host) session(c *Client, repo, actions string) *session {
	scope := "repository:" + repo + ":" + actions
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.sessions[scope]
	if !ok {
		s = &session{
			host: h, repository: h.registry + "/" + repo, scope: scope,
			creds: c.Credentials, agent: c.UserAgent,
			tokenTimeout: min(tokenTimeout, cmp.Or(c.GiveUp, tokenTimeout)),
		}
		if h.anonymous {
			s.creds = nil
		}
		if len(h.sessions) >= maxShared {
			clear(h.sessions) // tokens are cheap to get again
		}
		h.sessions[scope] = s
	}
	return s
}

// begin returns what to send, nil for nothing. The first request of a session leads: it must call
// release when it has its answer. Until then the others wait, or each of them would run into the
// same 401. A request that is aside neither leads nor waits, because a host that does not answer it
// may answer the others.
func (s *session) begin(
	ctx context.Context, n *Repository, aside bool,
) (g *grant, leading bool, err error) {
	for {
		s.mu.Lock()
		switch {
		case aside && !s.known:
			s.mu.Unlock()
			return nil, false, nil
		case s.busy != nil:
			if err := s.waitLocked(ctx); err != nil {
				return nil, false, err
			}
			continue
		case s.denied != nil && time.Now().Before(s.until):
			err := s.denied
			s.mu.Unlock()
			if s.refusalStands(ctx) {
				return nil, false, err
			}
			continue
		case !s.known:
			s.busy = &flight{done: make(chan struct{})}
			s.mu.Unlock()
			return nil, true, nil
		case s.grant != nil && !s.grant.expires.IsZero() && !time.Now().Before(s.grant.expires):
			s.busy = &flight{done: make(chan struct{})}
			s.mu.Unlock()
			err := s.fetch(ctx, &[]creds.Credential{}, n)
			s.release(ctx, err)
			if err != nil {
				return nil, false, err
			}
			continue
		}
		g = s.grant
		s.mu.Unlock()
		return g, false, nil
	}
}

// learn notes that the host has answered a request that was aside, so that no other need lead.
func (s *session) learn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = s.known || s.busy == nil
}

// waitLocked unlocks and waits for the request that finds out or renews. Its error is that
// request's, for a token server that does not answer must not be waited for by one caller after the
// other.
func (s *session) waitLocked(ctx context.Context) error {
	f := s.busy
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// release lets the others go on. When the leader's own context ended, its err tells the others
// nothing: one of them leads next.
func (s *session) release(ctx context.Context, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil {
		s.known = true
		s.busy.err = err
	}
	close(s.busy.done)
	s.busy = nil
}

// errRecent says that another grant has been refused just now.
var errRecent = errors.New("credentials were refused a moment ago")

// refusal is an answer with which a host refused a grant.
type refusal struct {
	grant  *grant      // nil: there was none
	header http.Header // of the answer
	// that were refused in this call: their tokens by the host, or themselves by the token server
	tried *[]creds.Credential
}

// renew gets another grant after a refusal. leading says that the caller holds the session since
// begin. It returns nil when there is another grant, by its own work or somebody else's.
func (s *session) renew(ctx context.Context, r refusal, leading bool, n *Repository) (err error) {
	if len(*r.tried) == 0 && s.refusalStands(ctx) {
		return errRecent
	}
	if !leading {
		for {
			s.mu.Lock()
			if s.busy == nil {
				break
			}
			if err := s.waitLocked(ctx); err != nil {
				return err
			}
		}
		if s.grant != r.grant { // somebody was faster
			s.mu.Unlock()
			return nil
		}
		s.busy = &flight{done: make(chan struct{})}
		s.mu.Unlock()
		defer func() { s.release(ctx, err) }()
	}
	for _, c := range auth.ParseAuthHeader(r.header) {
		if c.Scheme == auth.BearerAuth || c.Scheme == auth.BasicAuth {
			s.mu.Lock()
			s.challenge = &c
			s.mu.Unlock()
			break
		}
	}
	return s.fetch(ctx, r.tried, n)
}

// refused notes that the host refused what was fetched for g by all credentials, so that for a
// while nobody asks for more tokens in vain. What g, the first of these, does allow goes on.
func (s *session) refused(g *grant, tried []creds.Credential) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g != nil {
		s.grant = g
	}
	s.denyLocked(nil, tried)
}

// denyLocked makes a refusal stand: the longer the more often there was one of late.
func (s *session) denyLocked(err error, by []creds.Credential) {
	now := time.Now()
	if now.Sub(s.deniedAt) > time.Minute {
		s.denials = 0
	}
	s.denied, s.deniedBy, s.deniedAt, s.lookedAt = err, slices.Clone(by), now, now
	s.until = now.Add(min(deniedFor<<min(s.denials, 10), deniedAtMost))
	s.denials++
}

// refusalStands tells whether the latest refusal still does: not after its time, nor when there are other
// credentials than then.
func (s *session) refusalStands(ctx context.Context) bool {
	s.mu.Lock()
	now := time.Now()
	if !now.Before(s.until) {
		s.mu.Unlock()
		return false
	}
	if s.creds == nil || now.Sub(s.lookedAt) < lookEvery {
		s.mu.Unlock()
		return true
	}
	s.lookedAt = now
	s.mu.Unlock()
	found, err := s.creds(ctx, s.host.Name, s.repository)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || !slices.ContainsFunc(found, func(c creds.Credential) bool {
		return !slices.Contains(s.deniedBy, c)
	}) {
		return true
	}
	s.denied, s.until = nil, time.Time{}
	return false
}

// isLoopback tells whether host[:port] is this machine.
func isLoopback(hostport string) bool {
	h, _, err := net.SplitHostPort(hostport)
	if err != nil {
		h = hostport
	}
	ip := net.ParseIP(h)
	return h == "localhost" || (ip != nil && ip.IsLoopback())
}
