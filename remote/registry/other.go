package registry

import (
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
// URL has ended, does not name a way to log in. Under another name, or where https has led to http,
// nobody is logged in but anonymously, because a registry could have the node fetch what another
// one shows to the node alone.
func (h *Host) asks(r *Reply) *Host {
	if r.StatusCode != http.StatusUnauthorized {
		return nil
	}
	for _, c := range auth.ParseAuthHeader(r.Header) {
		if c.Scheme != auth.BasicAuth && (c.Scheme != auth.BearerAuth || c.Parameters["realm"] == "") {
			continue
		}
		own := url.URL{Host: h.Name}
		same := own.Hostname() == r.Via.Hostname() && (r.Via.Scheme == "https" || h.cleartext)
		key := r.Via.Scheme + "://" + r.Via.Host
		h.mu.Lock()
		defer h.mu.Unlock()
		if o := h.others[key]; o != nil {
			return o // another request was faster
		}
		if h.others == nil || len(h.others) >= maxShared {
			h.others = map[string]*Host{}
		}
		h.others[key] = &Host{
			client: h.client, tokens: h.tokens, Scheme: r.Via.Scheme, Name: r.Via.Host,
			registry: h.registry, cleartext: r.Via.Scheme == "http", anonymous: !same,
			sessions: map[string]*session{},
		}
		return h.others[key]
	}
	return nil
}
