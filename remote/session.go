package remote

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

const (
	tokenTimeout = 20 * time.Second // for all requests that one token takes
	deniedFor    = 10 * time.Second // how long a refusal stands before credentials are looked up again
)

// session is the authorization of one scope at one host, shared by all requests that need it.
//
// The protocol's parts (challenges, token requests) are containerd's. Its authorizer is not used whole: it keeps a failed
// token request's error for ever, runs a shared token request under whichever caller's context came first, and asks
// for every repository together with the one it saw first.
type session struct {
	host  *host
	scope string
	creds func(ctx context.Context, host string) (user, secret string, err error)
	agent string

	mu        sync.Mutex
	busy      *flight // the request that finds out or renews; nil: none under way
	known     bool    // an answer has been seen, so the challenge, if there is one, is known
	challenge *auth.Challenge
	grant     *grant
	denied    error     // why there is no grant; stands until the time below
	until     time.Time // before it, credentials are not looked up again
}

// flight is one request for which others wait. err is set before done is closed.
type flight struct {
	done chan struct{}
	err  error // theirs as well
}

// grant is what a session sends along. Immutable.
type grant struct {
	header  string
	expires time.Time // zero: unknown, the host will say
}

// session returns the shared session of the host for a repository.
func (h *host) session(c *Client, repo string, push bool) *session {
	scope := "repository:" + repo + ":pull"
	if push {
		scope += ",push"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.sessions[scope]
	if !ok {
		s = &session{host: h, scope: scope, creds: c.cfg.Credentials, agent: c.cfg.UserAgent}
		if len(h.sessions) >= maxShared {
			clear(h.sessions) // tokens are cheap to get again
		}
		h.sessions[scope] = s
	}
	return s
}

// begin returns what to send, nil for nothing. The first request of a session leads: it must call release when it has its
// answer. Until then the others wait, or each of them would run into the same 401.
func (s *session) begin(ctx context.Context, n *counters) (g *grant, leading bool, err error) {
	for {
		s.mu.Lock()
		switch {
		case s.busy != nil:
			if err := s.waitLocked(ctx); err != nil {
				return nil, false, err
			}
			continue
		case s.denied != nil && time.Now().Before(s.until):
			err := s.denied
			s.mu.Unlock()
			return nil, false, err
		case !s.known:
			s.busy = &flight{done: make(chan struct{})}
			s.mu.Unlock()
			return nil, true, nil
		case s.grant != nil && !s.grant.expires.IsZero() && !time.Now().Before(s.grant.expires):
			s.busy = &flight{done: make(chan struct{})}
			s.mu.Unlock()
			err := s.fetch(ctx, n)
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

// waitLocked unlocks and waits for the request that finds out or renews. Its error is that request's, for a token server that
// does not answer must not be waited for by one caller after the other.
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

// release lets the others go on. When the leader's own context ended, its err tells the others nothing: one of them leads next.
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

// renew gets another grant after the host refused g. leading says that the caller holds the session since begin. It returns
// nil when there is another grant, by its own work or somebody else's.
func (s *session) renew(ctx context.Context, g *grant, leading bool, header http.Header, n *counters) (err error) {
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
		if s.grant != g { // somebody was faster
			s.mu.Unlock()
			return nil
		}
		if time.Now().Before(s.until) {
			s.mu.Unlock()
			return errRecent
		}
		s.busy = &flight{done: make(chan struct{})}
		s.mu.Unlock()
		defer func() { s.release(ctx, err) }()
	}
	for _, c := range auth.ParseAuthHeader(header) {
		if c.Scheme == auth.BearerAuth || c.Scheme == auth.BasicAuth {
			s.mu.Lock()
			s.challenge = &c
			s.mu.Unlock()
			break
		}
	}
	return s.fetch(ctx, n)
}

// refused notes that the host refused a grant just fetched, so that for a while nobody asks for more tokens in vain. What
// the grant does allow goes on.
func (s *session) refused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = time.Now().Add(deniedFor)
}

// fetch gets a grant by the challenge. The caller holds busy, not mu.
func (s *session) fetch(ctx context.Context, n *counters) error {
	s.mu.Lock()
	c := s.challenge
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("%s refuses and names no way to authenticate: %w", s.host.name, ErrUnauthorized)
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	var user, secret string
	var err error
	if s.creds != nil {
		if user, secret, err = s.creds(ctx, s.host.name); err != nil {
			err = fmt.Errorf("credentials for %s: %w: %w", s.host.name, err, ErrUnauthorized)
		}
	}
	var g *grant
	if err != nil {
		// No anonymous attempt: what it gets could be another answer than the one meant for this user.
	} else if c.Scheme == auth.BasicAuth {
		if user == "" || secret == "" {
			err = fmt.Errorf("%s asks for a user and a password: %w", s.host.name, ErrUnauthorized)
		} else {
			g = &grant{header: "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))}
		}
	} else {
		g, err = s.token(ctx, *c, user, secret, n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if errors.Is(err, ErrUnauthorized) {
			s.denied, s.until = err, time.Now().Add(deniedFor)
		}
		return err
	}
	s.grant, s.denied, s.until = g, nil, time.Time{}
	return nil
}

// token asks the token server that the challenge names.
// https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/
func (s *session) token(ctx context.Context, c auth.Challenge, user, secret string, n *counters) (*grant, error) {
	to, err := auth.GenerateTokenOptions(ctx, s.host.name, user, secret, c)
	if err != nil {
		return nil, fmt.Errorf("challenge of %s: %w: %w", s.host.name, err, ErrUnauthorized)
	}
	realm, err := url.Parse(to.Realm)
	if err != nil || (realm.Scheme != "http" && realm.Scheme != "https") {
		return nil, fmt.Errorf("challenge of %s: realm %q is no address: %w", s.host.name, printable(to.Realm, 100), ErrUnauthorized)
	}
	if realm.Scheme == "http" && s.host.scheme == "https" && !isLoopback(realm.Host) {
		return nil, fmt.Errorf("%s wants credentials sent in the clear, to %s: %w", s.host.name, realm.Host, ErrUnauthorized)
	}
	to.Scopes = docker.GetTokenScopes(docker.WithScope(ctx, s.scope), to.Scopes)
	header := http.Header{"User-Agent": {s.agent}}
	if realm.Host == s.host.name {
		for k, v := range s.host.header {
			header[k] = v
		}
	}
	asked := time.Now()
	var value string
	var lifetime int
	if to.Secret != "" {
		n.request(true)
		var t *auth.OAuthTokenResponse
		if t, err = auth.FetchTokenWithOAuth(ctx, s.host.tokens, header, "mica", to); err == nil {
			value, lifetime = t.AccessToken, t.ExpiresInSeconds
		}
	}
	// Many token servers know only GET, and say so in as many ways.
	if code := tokenStatus(err); to.Secret == "" || code == 400 || code == 401 || code == 404 || code == 405 {
		n.request(true)
		var t *auth.FetchTokenResponse
		if t, err = auth.FetchToken(ctx, s.host.tokens, header, to); err == nil {
			value, lifetime = t.Token, t.ExpiresInSeconds
		}
	}
	if err != nil {
		switch code := tokenStatus(err); {
		case code == 408 || code == 425 || code == 429 || code < 400 || code >= 500:
			return nil, fmt.Errorf("token from %s: %w", realm.Host, tokenError(err))
		default:
			return nil, fmt.Errorf("token from %s: %w: %w", realm.Host, tokenError(err), ErrUnauthorized)
		}
	}
	g := &grant{header: "Bearer " + value}
	if lifetime > 0 {
		// Renewed a little early, by this clock alone: the server's may differ.
		d := time.Duration(min(lifetime, 1<<30)) * time.Second
		g.expires = asked.Add(d - min(d/10, 10*time.Second))
	}
	return g, nil
}

// tokenStatus is the HTTP status in an error of a token request, 0 if there is none.
func tokenStatus(err error) int {
	var s remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &s) {
		return s.StatusCode
	}
	return 0
}

// tokenError drops the URL, which holds the account's name, and keeps what the server said.
func tokenError(err error) error {
	var s remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &s) {
		return fmt.Errorf("%s %s", s.Status, printable(string(s.Body), 200))
	}
	return bare(err)
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
