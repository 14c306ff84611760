package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/mica-snapshotter/mica/remote/creds"
)

const (
	maxHops        = 6 // redirects of one request
	maxCredentials = 8 // that one request is tried with
)

// call is one request to a repository, at whichever host.
type call struct {
	method  string
	rest    string // path below the repository: "blobs/sha256:…"
	query   url.Values
	header  http.Header
	url     *url.URL   // instead of rest and query: an address that the host gave
	target  *target    // where a blob's redirect target is kept; nil: not kept
	actions string     // that need be allowed; "": actionPull
	proved  bool       // the answer is compared with a digest, whoever sends it
	aside   bool       // for a look-up: no other request waits for its answer, and it for none
	body    *uploading // nil: none
	stall   time.Duration
}

// exchanger sends the calls of one image.
type exchanger struct {
	client *Client
	repo   string
	stats  *counters
}

// send does a call at a host: authorizes it, renews what has expired, follows redirects. The answer
// has a status below 300; the caller closes it. Other answers are *statusError. ctx ends the body,
// too.
func (x *exchanger) send(ctx context.Context, h *host, c *call) (*reply, error) {
	if c.target != nil {
		u, done, err := c.target.begin(ctx, h)
		if err != nil {
			return nil, err
		}
		if u != nil {
			r, err := x.once(ctx, h, c, u, "")
			if err == nil && r.StatusCode < 300 {
				return r, nil
			}
			if err == nil {
				err = x.refusal(r, true)
			}
			c.target.forgetURL(u)
			if !staleTarget(err) {
				return nil, err
			}
			if u, done, err = c.target.begin(ctx, h); err != nil {
				return nil, err
			}
			if u != nil { // somebody else has asked meanwhile
				if r, err = x.once(ctx, h, c, u, ""); err != nil {
					c.target.forgetURL(u)
					return nil, err
				}
				return x.checked(r, c, u)
			}
		}
		if done != nil {
			defer done()
		}
	}
	r, err := x.authorized(ctx, h, c)
	if err != nil {
		return nil, err
	}
	return x.follow(ctx, h, c, r)
}

// checked returns the answer of a redirect target, or its error; a target that refuses is
// forgotten.
func (x *exchanger) checked(r *reply, c *call, u *url.URL) (*reply, error) {
	if r.StatusCode < 300 {
		return r, nil
	}
	if c.target != nil {
		c.target.forgetURL(u)
	}
	return nil, x.refusal(r, true)
}

// staleTarget tells whether a redirect target that was kept has to be asked for again, at once.
func staleTarget(err error) bool {
	var s *statusError
	return errors.As(err, &s) && s.code >= 300 && s.code < 500 &&
		s.code != http.StatusTooManyRequests && s.code != http.StatusRequestTimeout
}

// authorized sends a call to the host itself. The answer has any status but 401 and 403.
func (x *exchanger) authorized(ctx context.Context, h *host, c *call) (*reply, error) {
	s := h.session(x.client, x.repo, or(c.actions, actionPull))
	g, leading, err := s.begin(ctx, x.stats, c.aside)
	if err != nil {
		return nil, err
	}
	if leading {
		defer func() { s.release(ctx, nil) }()
	}
	u := c.url
	if u == nil {
		u = h.url(x.repo, c.rest, c.query)
	}
	var tried []creds.Credential
	var first *grant // that was new and refused
	for try := 0; ; try++ {
		header := ""
		if g != nil {
			header = g.header
		}
		r, err := x.once(ctx, h, c, u, header)
		if err != nil {
			return nil, err
		}
		if r.StatusCode != http.StatusUnauthorized && r.StatusCode != http.StatusForbidden {
			if c.aside {
				s.learn()
			}
			return r, nil
		}
		no := x.refusal(r, false)
		// A token may have expired unseen (some hosts say 403 then); one fetched for this call has
		// not.
		if r.StatusCode == http.StatusForbidden && g == nil &&
			r.Header.Get("WWW-Authenticate") == "" {
			s.refused(nil, nil)
			return nil, no
		}
		if g != nil && g.whyAnonymous != nil {
			no = fmt.Errorf("%w; before that: %w", no, g.whyAnonymous)
		}
		if try > 0 && g != nil {
			tried = append(tried, g.by)
			first = or(first, g)
		}
		if try > maxCredentials {
			s.refused(first, tried)
			return nil, no
		}
		switch err := s.renew(ctx, refusal{g, r.Header, &tried}, leading, x.stats); {
		case errors.Is(err, errNoOther), first != nil && errors.Is(err, ErrUnauthorized):
			s.refused(first, tried)
			return nil, no
		case errors.Is(err, errRecent):
			return nil, no
		case err != nil:
			return nil, fmt.Errorf("%s %s%s: status %d: %w", c.method, u.Host, u.Path, r.StatusCode,
				err)
		}
		if c.body != nil { // it is spent, so the caller starts again
			return nil, &retryError{no}
		}
		s.mu.Lock()
		g = s.grant
		s.mu.Unlock()
	}
}

// retryError marks a refusal after which the same call, made again, has other credentials.
type retryError struct{ err error }

func (e *retryError) Error() string { return e.err.Error() }

// follow goes where the host's answer points. Credentials and the headers that hosts.toml sets stay
// with the host, and with its scheme. As containerd does, follow leaves https for http, but only
// for what is compared with a digest.
func (x *exchanger) follow(ctx context.Context, h *host, c *call, r *reply) (*reply, error) {
	origin := r.via
	expires := time.Time{}
	for hop := 0; ; hop++ {
		u, err := redirect(r)
		if err != nil {
			return nil, err
		}
		if u == nil {
			if r.StatusCode >= 300 {
				return nil, x.refusal(r, hop > 0)
			}
			if c.target != nil {
				c.target.found(h, origin, r.via, expires)
			}
			return r, nil
		}
		r.close()
		if hop == maxHops {
			return nil, fmt.Errorf("%s %s%s: more than %d redirects", c.method, h.name, origin.Path,
				maxHops)
		}
		if r.via.Scheme == "https" && u.Scheme != "https" && !c.proved {
			return nil, fmt.Errorf("%s %s%s: %w: to %s://%s",
				c.method, h.name, origin.Path, errCleartext, u.Scheme, u.Host)
		}
		if e := expiry(u); !e.IsZero() && (expires.IsZero() || e.Before(expires)) {
			expires = e
		}
		if u.Scheme == origin.Scheme && u.Host == origin.Host {
			again := *c
			again.url = u
			r, err = x.authorized(ctx, h, &again)
		} else {
			r, err = x.once(ctx, h, c, u, "")
		}
		if err != nil {
			return nil, err
		}
	}
}

// redirect returns where an answer points, nil if it does not.
func redirect(r *reply) (*url.URL, error) {
	switch r.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	if r.Request.Method != http.MethodGet && r.Request.Method != http.MethodHead {
		return nil, nil
	}
	u, err := r.Location()
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		r.close()
		return nil, fmt.Errorf("%s %s%s: redirect to no address", r.Request.Method,
			r.Request.URL.Host, r.Request.URL.Path)
	}
	return u, nil
}

// once sends one HTTP request. authorization is sent along unless empty.
func (x *exchanger) once(
	ctx context.Context, h *host, c *call, u *url.URL, authorization string,
) (*reply, error) {
	w := newWatch(ctx, or(c.stall, x.client.cfg.StallTimeout))
	var body io.Reader
	if c.body != nil && c.body.size > 0 {
		body = c.body
	}
	req, err := http.NewRequestWithContext(w.ctx, c.method, u.String(), body)
	if err != nil {
		w.stop()
		return nil, fmt.Errorf("%s %s%s: %w", c.method, u.Host, u.Path, bare(err))
	}
	if body != nil {
		c.body.begin(w)
		req.ContentLength = c.body.size
	}
	if u.Host == h.name && u.Scheme == h.scheme {
		for k, vs := range h.header {
			for _, v := range vs {
				req.Header.Add(k, v)
			}
		}
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", x.client.cfg.UserAgent)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	x.stats.request(false)
	resp, err := h.client.Do(req) //nolint:bodyclose // the reply closes it
	w.timer.Stop()
	if err != nil {
		err = w.why(err)
		w.stop()
		return nil, fmt.Errorf("%s %s%s: %w", c.method, u.Host, u.Path, err)
	}
	return &reply{Response: resp, watch: w, via: u, stats: x.stats}, nil
}

// refusal makes an error of an answer, and closes it.
func (x *exchanger) refusal(r *reply, target bool) error {
	defer r.close()
	return newStatusError(r, target, time.Now())
}
