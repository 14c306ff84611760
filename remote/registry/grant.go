package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"

	"github.com/mica-snapshotter/mica/remote/creds"
)

// errNoOther says that there are no credentials but those that were refused.
var errNoOther = errors.New("no other credentials")

// fetch gets a grant by the challenge, with the first credentials that get one and are not among
// those tried, to which it adds those that the token server refuses. The caller holds busy, not mu.
func (s *session) fetch(ctx context.Context, tried *[]creds.Credential, n *Repository) error {
	s.mu.Lock()
	c, down := s.challenge, s.down
	if !time.Now().Before(s.downUntil) {
		down = nil
	}
	s.mu.Unlock()
	switch {
	case c == nil:
		return fmt.Errorf("%s refuses and names no way to authenticate: %w", s.host.Name,
			ErrUnauthorized)
	case down != nil:
		return down
	}
	ctx, cancel := context.WithTimeout(ctx, s.tokenTimeout)
	defer cancel()
	var found []creds.Credential
	var g *grant
	var err error
	if s.creds != nil {
		if found, err = s.creds(ctx, s.host.Name, s.repository); err != nil {
			// No anonymous attempt: what it gets could be another answer than the one meant for
			// this user.
			err = fmt.Errorf("credentials for %s: %w: %w", s.host.Name, err, ErrUnauthorized)
		}
	}
	if err == nil {
		g, err = s.grantBy(ctx, *c, found, tried, n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.grant, s.denied = g, nil
		s.until = time.Time{}
	case errors.Is(err, errNoOther):
	case errors.Is(err, ErrUnauthorized):
		s.denyLocked(err, found)
	case ctx.Err() == nil:
		s.down, s.downUntil = err, time.Now().Add(tokenPause)
	}
	return err
}

// grantBy gets a grant with the first of the credentials that gets one. Where the token server
// refuses them all, whoever comes without any may still read: credentials that have expired must
// not make a public image unreadable.
func (s *session) grantBy(
	ctx context.Context, c auth.Challenge, found []creds.Credential, tried *[]creds.Credential,
	n *Repository,
) (*grant, error) {
	if c.Scheme != auth.BasicAuth {
		found = append(slices.Clone(found), creds.Credential{})
	}
	var first error
	for _, by := range found {
		if slices.Contains(*tried, by) {
			continue
		}
		if c.Scheme == auth.BasicAuth {
			if by.User == "" || by.Secret == "" {
				continue
			}
			return &grant{header: "Basic " +
				base64.StdEncoding.EncodeToString([]byte(by.User+":"+by.Secret)), by: by}, nil
		}
		g, err := s.token(ctx, c, by, n)
		if err == nil {
			if by == (creds.Credential{}) {
				g.whyAnonymous = first
			}
			return g, nil
		}
		if !errors.Is(err, ErrUnauthorized) {
			return nil, err
		}
		*tried = append(*tried, by)
		if first == nil {
			first = err
		}
	}
	switch {
	case first != nil:
		return nil, first
	case len(*tried) > 0:
		return nil, errNoOther
	}
	return nil, fmt.Errorf("%s asks for a user and a password: %w", s.host.Name, ErrUnauthorized)
}

// token asks the token server that the challenge names.
// https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/
func (s *session) token(
	ctx context.Context, c auth.Challenge, by creds.Credential, n *Repository,
) (*grant, error) {
	to, err := auth.GenerateTokenOptions(ctx, s.host.Name, by.User, by.Secret, c)
	if err != nil {
		return nil, fmt.Errorf("challenge of %s: %w: %w", s.host.Name, err, ErrUnauthorized)
	}
	realm, err := url.Parse(to.Realm)
	if err != nil || (realm.Scheme != "http" && realm.Scheme != "https") {
		return nil, fmt.Errorf("challenge of %s: realm %q is no address: %w", s.host.Name,
			Printable(to.Realm, 100), ErrUnauthorized)
	}
	exposed := realm.Scheme == "http" && !s.host.cleartext && !isLoopback(realm.Host)
	if exposed && to.Secret != "" {
		return nil, fmt.Errorf("%s wants credentials sent in the clear, to %s: %w", s.host.Name,
			realm.Host, ErrUnauthorized)
	}
	to.Scopes = docker.GetTokenScopes(docker.WithScope(ctx, s.scope), to.Scopes)
	header := http.Header{"User-Agent": {s.agent}}
	if !exposed { // as containerd does: a password may stand in hosts.toml alone
		for k, v := range s.host.header {
			header[http.CanonicalHeaderKey(k)] = v
		}
	}
	asked := time.Now()
	var value string
	var lifetime int
	if to.Secret != "" {
		sent := n.sending(realm.Host, tokenRequest, "")
		var t *auth.OAuthTokenResponse
		if t, err = auth.FetchTokenWithOAuth(ctx, s.host.tokens, header, "mica", to); err == nil {
			value, lifetime = t.AccessToken, t.ExpiresInSeconds
		}
		sent.token(err)
	}
	// Many token servers know only GET, and say so in as many ways.
	if code := tokenStatus(err); to.Secret == "" || code == 400 || code == 401 || code == 404 ||
		code == 405 {
		sent := n.sending(realm.Host, tokenRequest, "")
		var t *auth.FetchTokenResponse
		if t, err = auth.FetchToken(ctx, s.host.tokens, header, to); err == nil {
			value, lifetime = t.Token, t.ExpiresInSeconds
		}
		sent.token(err)
	}
	if err != nil {
		switch code := tokenStatus(err); {
		case code == 408 || code == 425 || code == 429 || code < 400 || code >= 500:
			return nil, fmt.Errorf("token from %s: %w", realm.Host, tokenError(err))
		default:
			return nil, fmt.Errorf("token from %s: %w: %w", realm.Host, tokenError(err),
				ErrUnauthorized)
		}
	}
	g := &grant{header: "Bearer " + value, by: by}
	if lifetime > 0 {
		// Renewed a little early, by this clock alone: the server's may differ.
		d := time.Duration(min(lifetime, 1<<30)) * time.Second
		g.expires = asked.Add(d - min(d/10, 10*time.Second))
		// One that has ended on its way is used nevertheless: the next would fare no better.
		if soon := time.Now().Add(time.Second); g.expires.Before(soon) {
			g.expires = soon
		}
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
		return fmt.Errorf("%s %s", s.Status, Printable(string(s.Body), 200))
	}
	return bare(err)
}
