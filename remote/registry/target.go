package registry

import (
	"context"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// how long before its end a redirect target is not used any more
	targetMargin = 15 * time.Second
	freeFor      = 30 * time.Second // see Target.free
)

// Target is where a host sends those who ask for a blob: a signed URL as a rule, good for minutes.
// If the host is known to redirect, parallel requests for a blob wait for one answer. If it is not
// known yet, they do not wait, because a pull's first requests are to leave at once.
type Target struct {
	mu        sync.Mutex
	host      *Host
	url       *url.URL // nil: unknown
	expires   time.Time
	gotAnswer bool          // found was called since the last question
	asking    chan struct{} // closed when the answer is there
	free      time.Time     // a question was not answered: until then nobody waits for another's
}

// begin returns the target, or nil: then the caller asks the host, and calls done, unless nil, when
// it has its answer.
func (t *Target) begin(ctx context.Context, h *Host) (u *url.URL, done func(), err error) {
	for {
		waits := h.redirects.Load()
		t.mu.Lock()
		if t.url != nil && t.host == h && (t.expires.IsZero() || time.Now().Before(t.expires)) {
			u := t.url
			t.mu.Unlock()
			return u, nil, nil
		}
		if !waits || time.Now().Before(t.free) {
			t.mu.Unlock()
			return nil, nil, nil
		}
		if t.asking == nil {
			ch := make(chan struct{})
			t.asking = ch
			t.mu.Unlock()
			return nil, func() { t.answered(ch) }, nil
		}
		ch := t.asking
		t.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

func (t *Target) answered(ch chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(ch)
	t.asking = nil
	if !t.gotAnswer {
		t.free = time.Now().Add(freeFor)
	}
	t.gotAnswer = false
}

// found notes where the blob was found. expires is zero where the target does not say: then it is
// used until it is refused.
func (t *Target) found(h *Host, u *url.URL, expires time.Time) {
	elsewhere := !h.is(u)
	h.redirects.Store(elsewhere)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gotAnswer = true
	t.host, t.url, t.expires = nil, nil, time.Time{}
	if elsewhere {
		if !expires.IsZero() {
			expires = expires.Add(-targetMargin)
		}
		t.host, t.url, t.expires = h, u, expires
	}
}

// ForgetURL forgets a target that does not work.
func (t *Target) ForgetURL(u *url.URL) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.url == u {
		t.host, t.url = nil, nil
	}
}

// Forget forgets the target, whichever it is.
func (t *Target) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.host, t.url = nil, nil
}

// expiry reads from a signed URL when it ends, zero if it does not say. It knows the schemes of S3
// and its like (X-Amz-Date, X-Amz-Expires), Google (X-Goog-Date, X-Goog-Expires), Azure (se),
// CloudFront and older ones (Expires, Unix seconds), and Cloudflare in front of Docker Hub (verify,
// or expires, Unix seconds).
func expiry(u *url.URL) time.Time {
	q := u.Query()
	for _, p := range []string{"X-Amz-", "X-Goog-"} {
		at, err1 := time.Parse("20060102T150405Z", q.Get(p+"Date"))
		s, err2 := strconv.ParseInt(q.Get(p+"Expires"), 10, 32)
		if err1 == nil && err2 == nil && s >= 0 {
			return at.Add(time.Duration(s) * time.Second)
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z", "2006-01-02"} {
		if at, err := time.Parse(layout, q.Get("se")); err == nil {
			return at
		}
	}
	verify, _, _ := strings.Cut(q.Get("verify"), "-")
	for _, v := range []string{q.Get("Expires"), q.Get("expires"), verify} {
		if s, err := strconv.ParseInt(v, 10, 64); err == nil && s > 1e9 && s < 1e11 {
			return time.Unix(s, 0)
		}
	}
	return time.Time{}
}
