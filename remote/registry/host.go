package registry

import (
	"net/http"
	"net/url"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	maxHostPenalty = 60 * time.Second // how long a host that keeps failing comes last
	noRangesFor    = 5 * time.Minute  // how long a host that ignored Range comes last
	noReferrersFor = time.Hour        // how long a host without the referrers API is not asked for it
)

// Host is one endpoint of a registry: the registry itself or a mirror of it.
type Host struct {
	client       *http.Client // follows no redirects
	tokens       *http.Client // for token servers; follows redirects
	Scheme, Name string       // Name is host[:port]
	registry     string       // for which it answers, as in image references
	root         string       // path of the API, "/v2" as a rule
	caps         docker.HostCapabilities
	header       http.Header // from hosts.toml; for this host and its token server only
	Namespace    string      // value of ?ns= for a mirror; "" for the registry itself
	Lists        Doubt       // whether it answers when it is asked for referrers
	referrers    atomic.Bool // has the referrers API
	redirects    atomic.Bool // has redirected who asked for a blob, the last time
	unverified   bool        // is not asked for a certificate that proves who it is
	cleartext    bool        // is configured for http, though TLS may be tried first
	anonymous    bool        // is given no credentials

	mu          sync.Mutex
	failures    int       // in a row
	badUntil    time.Time // comes after the others until then
	notBefore   time.Time // asked for by Retry-After: not asked until then
	noRanges    time.Time // has ignored a Range; comes after the others until then
	noReferrers time.Time // has no referrers API; not asked for it until then
	sessions    map[string]*session
	others      map[string]*Host             // see other; by scheme and name
	waiting     map[chan<- struct{}]struct{} // told when it answers
}

// url is the address of a path below the repository, with the namespace where the host is a mirror.
func (h *Host) url(repo, rest string, query url.Values) *url.URL {
	q := url.Values{}
	for k, v := range query {
		q[k] = v
	}
	if h.Namespace != "" {
		q.Set("ns", h.Namespace)
	}
	// rest may end in a slash (blobs/uploads/), which Join would take away.
	return &url.URL{Scheme: h.Scheme, Host: h.Name, Path: path.Join("/", h.root, repo) + "/" + rest,
		RawQuery: q.Encode()}
}

// is tells whether an address is the host's: so is https at a host that is configured for http, and
// http where TLS is only tried first.
func (h *Host) is(u *url.URL) bool {
	return u.Host == h.Name && (u.Scheme == h.Scheme || h.cleartext)
}

// CanName says whether the host may say which content a name stands for.
func (h *Host) CanName() bool {
	return h.caps.Has(docker.HostCapabilityPull | docker.HostCapabilityResolve)
}

// Failed notes a failure that may pass.
func (h *Host) Failed(now time.Time, retryAfter time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures++
	h.badUntil = now.Add(min(time.Second<<min(h.failures-1, 6), maxHostPenalty))
	if t := now.Add(retryAfter); retryAfter > 0 && t.After(h.notBefore) {
		h.notBefore = t
	}
}

// failing tells whether the host has failed just now.
func (h *Host) failing(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Before(h.badUntil)
}

// Worked notes an answer: whoever pauses because the host has failed is told.
func (h *Host) Worked() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.badUntil, h.notBefore = 0, time.Time{}, time.Time{}
	for ch := range h.waiting {
		select {
		case ch <- struct{}{}:
		default: // it has been told
		}
	}
	clear(h.waiting)
}

// await has ch, which has room for one, told when the host next answers somebody. Pair it with
// leave.
func (h *Host) await(ch chan<- struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil {
		h.waiting = map[chan<- struct{}]struct{}{}
	}
	h.waiting[ch] = struct{}{}
}

func (h *Host) leave(ch chan<- struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.waiting, ch)
}

// standing is how the host compares with others: 0 is good, more is worse; and the time before
// which it must not be asked.
func (h *Host) standing(now time.Time) (penalty int, notBefore time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Before(h.badUntil) {
		penalty += penaltyFails
	}
	if now.Before(h.noRanges) {
		penalty += penaltyNoRanges
	}
	return penalty, h.notBefore
}

// LacksReferrers tells whether the host has shown lately that it has no referrers API.
func (h *Host) LacksReferrers() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.noReferrers)
}

// SetReferrers notes whether the host has the referrers API.
func (h *Host) SetReferrers(has bool) {
	h.referrers.Store(has)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noReferrers = time.Time{}
	if !has {
		h.noReferrers = time.Now().Add(noReferrersFor)
	}
}

// HasReferrers tells whether the host is known to have the API.
func (h *Host) HasReferrers() bool { return h.referrers.Load() }

// IgnoredRange notes that the host has ignored a range.
func (h *Host) IgnoredRange() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noRanges = time.Now().Add(noRangesFor)
}

// IgnoresRanges tells whether the host has ignored a range lately.
func (h *Host) IgnoresRanges() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.noRanges)
}
