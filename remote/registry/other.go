package registry

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
)

// other returns the registry at an address to which the host redirects, nil if none there is known
// to ask for a login.
func (h *Host) other(u *url.URL) *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.others[u.Scheme+"://"+u.Host]
}

// asks returns the registry to which the host has redirected if that asks for a login, else nil:
// one host name may stand for repositories of several registries. A content server, whose signed
// URL has ended, does not name a way to log in. Nobody logs in by http elsewhere than on this
// machine, because whoever can change what an http registry answers could name any registry, and
// have its login.
func (h *Host) asks(r *Reply) (*Host, error) {
	if r.StatusCode != http.StatusUnauthorized {
		return nil, nil
	}
	for _, c := range auth.ParseAuthHeader(r.Header) {
		if c.Scheme != auth.BasicAuth && (c.Scheme != auth.BearerAuth || c.Parameters["realm"] == "") {
			continue
		}
		if r.Via.Scheme == "http" && !isLoopback(r.Via.Host) {
			return nil, fmt.Errorf("%s redirects to %s, which wants credentials sent in the clear: %w",
				h.Name, r.Via.Host, ErrUnauthorized)
		}
		key := r.Via.Scheme + "://" + r.Via.Host
		h.mu.Lock()
		defer h.mu.Unlock()
		if o := h.others[key]; o != nil {
			return o, nil // another request was faster
		}
		if h.others == nil || len(h.others) >= maxShared {
			h.others = map[string]*Host{}
		}
		h.others[key] = &Host{
			client: h.client, tokens: h.tokens, Scheme: r.Via.Scheme, Name: r.Via.Host,
			registry: h.registry, cleartext: r.Via.Scheme == "http", sessions: map[string]*session{},
		}
		return h.others[key], nil
	}
	return nil, nil
}
