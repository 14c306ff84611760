package registry

import (
	"cmp"
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
	maxHops        = 10 // redirects of one request; containerd's
	maxCredentials = 8  // that one request is tried with
)

// Call is one request to a repository, at whichever host.
type Call struct {
	Method  string
	Rest    string // path below the repository: "blobs/sha256:…"
	Query   url.Values
	Header  http.Header
	URL     *url.URL      // instead of Rest and Query: an address that the host gave
	Target  *Target       // where a blob's redirect target is kept; nil: not kept
	Actions string        // that need be allowed; "": ActionPull
	Proved  bool          // the answer is compared with a digest, whoever sends it
	Aside   bool          // for a look-up: no other request waits for its answer, and it for none
	Body    *Body         // nil: none
	Stall   time.Duration // instead of Config.StallTimeout; 0: that
}

// Send does a call at a host: authorizes it, renews what has expired, follows redirects. The answer
// has a status below 300; the caller closes it. Other answers are *StatusError. ctx ends the body,
// too.
func (x *Repository) Send(ctx context.Context, h *Host, c *Call) (*Reply, error) {
	for asked := false; c.Target != nil; asked = true {
		u, done, err := c.Target.begin(ctx, h)
		if err != nil {
			return nil, err
		}
		if done != nil {
			defer done()
		}
		if u == nil {
			break
		}
		r, err := x.SendTo(ctx, h, c, u)
		if err == nil || asked || !staleTarget(err) {
			return r, err
		}
	}
	r, err := x.authorized(ctx, h, c)
	if err != nil {
		return nil, err
	}
	return x.follow(ctx, h, c, r)
}

// URL is the address of a call at a host, where the host has given no other.
func (x *Repository) URL(h *Host, c *Call) *url.URL { return h.url(x.name, c.Rest, c.Query) }

// SendTo does a call at an address elsewhere that the host gave, without the host's credentials. A
// target that does not answer, or refuses, is forgotten.
func (x *Repository) SendTo(ctx context.Context, h *Host, c *Call, u *url.URL) (*Reply, error) {
	var r *Reply
	var err error
	if o := h.other(u); o != nil {
		again := *c
		again.URL = u
		r, err = x.authorized(ctx, o, &again)
	} else {
		r, err = x.once(ctx, h, c, u, "")
	}
	if err == nil && r.StatusCode < 300 {
		return r, nil
	}
	if err == nil {
		err = x.refusal(r, true)
	}
	if c.Target != nil {
		c.Target.ForgetURL(u)
	}
	return nil, err
}

// staleTarget tells whether a redirect target that was kept has to be asked for again, at once.
func staleTarget(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code >= 300 && s.Code < 500 &&
		s.Code != http.StatusTooManyRequests && s.Code != http.StatusRequestTimeout
}

// authorized sends a call to the host itself. The answer has any status but 401 and 403.
func (x *Repository) authorized(ctx context.Context, h *Host, c *Call) (*Reply, error) {
	s := h.session(x.client, x.name, cmp.Or(c.Actions, ActionPull))
	g, leading, err := s.begin(ctx, x, c.Aside)
	if err != nil {
		return nil, err
	}
	if leading {
		defer func() { s.release(ctx, nil) }()
	}
	u := cmp.Or(c.URL, x.URL(h, c))
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
			if c.Aside {
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
			first = cmp.Or(first, g)
		}
		if try > maxCredentials {
			s.refused(first, tried)
			return nil, no
		}
		switch err := s.renew(ctx, refusal{g, r.Header, &tried}, leading, x); {
		case errors.Is(err, errNoOther), first != nil && errors.Is(err, ErrUnauthorized):
			s.refused(first, tried)
			return nil, no
		case errors.Is(err, errRecent):
			return nil, no
		case err != nil:
			return nil, fmt.Errorf("%s %s%s: status %d: %w", c.Method, u.Host, u.Path, r.StatusCode,
				err)
		}
		if c.Body != nil {
			// It is spent. The caller starts again, with other credentials: this is no refusal.
			return nil, errors.New(no.Error())
		}
		s.mu.Lock()
		g = s.grant
		s.mu.Unlock()
	}
}

// follow goes where the host's answer points. Credentials and the headers that hosts.toml sets stay
// with the host, and with its scheme; for a registry elsewhere that asks for a login see asks. As
// containerd does, follow leaves https for http, but only for what is compared with a digest.
func (x *Repository) follow(ctx context.Context, h *Host, c *Call, r *Reply) (*Reply, error) {
	origin := r.Via
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
			if c.Target != nil {
				c.Target.found(h, r.Via, expires)
			}
			return r, nil
		}
		r.Close()
		if hop == maxHops {
			return nil, fmt.Errorf("%s %s%s: more than %d redirects", c.Method, h.Name, origin.Path,
				maxHops)
		}
		if r.Via.Scheme == "https" && u.Scheme != "https" && !c.Proved && !h.cleartext {
			return nil, fmt.Errorf("%s %s%s: %w: to %s://%s",
				c.Method, h.Name, origin.Path, errCleartext, u.Scheme, u.Host)
		}
		if e := expiry(u); !e.IsZero() && (expires.IsZero() || e.Before(expires)) {
			expires = e
		}
		again := *c
		again.URL = u
		switch o := h.other(u); {
		case h.is(u):
			r, err = x.authorized(ctx, h, &again)
		case o != nil:
			r, err = x.authorized(ctx, o, &again)
		default:
			r, err = x.once(ctx, h, c, u, "")
			if err != nil {
				return nil, err
			}
			if o := h.asks(r); o != nil {
				r.Close()
				r, err = x.authorized(ctx, o, &again)
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// redirect returns where an answer points, nil if it does not.
func redirect(r *Reply) (*url.URL, error) {
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
		r.Close()
		return nil, fmt.Errorf("%s %s%s: redirect to no address", r.Request.Method,
			r.Request.URL.Host, r.Request.URL.Path)
	}
	return u, nil
}

// once sends one HTTP request. authorization is sent along unless empty.
func (x *Repository) once(
	ctx context.Context, h *Host, c *Call, u *url.URL, authorization string,
) (*Reply, error) {
	w := newWatch(ctx, cmp.Or(c.Stall, x.client.StallTimeout))
	var body io.Reader
	if c.Body != nil && c.Body.size > 0 {
		body = c.Body
	}
	req, err := http.NewRequestWithContext(w.ctx, c.Method, u.String(), body)
	if err != nil {
		w.stop()
		return nil, fmt.Errorf("%s %s%s: %w", c.Method, u.Host, u.Path, bare(err))
	}
	if body != nil {
		c.Body.begin(w)
		req.ContentLength = c.Body.size
	}
	if h.is(u) {
		for k, vs := range h.header {
			for _, v := range vs {
				req.Header.Add(k, v)
			}
		}
	}
	for k, v := range c.Header {
		req.Header[k] = v
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", x.client.UserAgent)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	sent := x.sending(u.Host, c.Rest, req.Header.Get("Range"))
	resp, err := h.client.Do(req) //nolint:bodyclose // the reply closes it
	w.timer.Stop()
	if err != nil {
		err = w.why(err)
		sent.ended(err)
		w.stop()
		return nil, fmt.Errorf("%s %s%s: %w", c.Method, u.Host, u.Path, err)
	}
	sent.answered(resp.StatusCode)
	return &Reply{Response: resp, watch: w, Via: u, stats: &x.client.stats, sent: sent}, nil
}

// refusal makes an error of an answer, and closes it.
func (x *Repository) refusal(r *Reply, target bool) error {
	defer r.Close()
	return newStatusError(r, target, time.Now())
}
