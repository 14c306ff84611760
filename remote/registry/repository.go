package registry

import (
	"context"
	"sync/atomic"
)

// Repository is one repository of a registry as one of its users reaches it: many may stand for the
// same one. Client.Repository makes it.
type Repository struct {
	client         *Client
	registry, name string // as in references: "docker.io", "library/debian"
	requests       atomic.Uint64
}

// Repository returns a repository by the names of its registry and its own. No I/O.
func (c *Client) Repository(registry, name string) *Repository {
	return &Repository{client: c, registry: registry, name: name}
}

// Registry is the name of the registry, as in references: "docker.io".
func (r *Repository) Registry() string { return r.registry }

// String is the name as in references: "docker.io/library/debian".
func (r *Repository) String() string { return r.registry + "/" + r.name }

// Requests is how many HTTP requests were sent for this user of the repository.
func (r *Repository) Requests() uint64 { return r.requests.Load() }

// Hosts returns the hosts that answer for the repository, as they are configured now.
func (r *Repository) Hosts(ctx context.Context) (*Hosts, error) {
	return r.client.hostsOf(ctx, r.registry)
}

// request counts one that is sent.
func (r *Repository) request(token bool) {
	r.requests.Add(1)
	r.client.stats.requests.Add(1)
	if token {
		r.client.stats.tokens.Add(1)
	}
}
