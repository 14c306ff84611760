package ranges

import (
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote/registry"
)

// maxStates bounds the blobs of which something is remembered.
const maxStates = 1 << 16

// Blobs is what is known of the blobs of a node's registries. New makes it.
type Blobs struct {
	spools spools
	served atomic.Uint64 // answers with bytes of blobs

	mu     sync.Mutex
	states map[stateKey]*state
}

// stateKey is a blob in a repository.
type stateKey struct {
	repository string
	digest     digest.Digest
}

// New returns the blobs that are read by a client. It does no I/O.
func New(c *registry.Client) *Blobs {
	return &Blobs{spools: spools{client: c}, states: map[stateKey]*state{}}
}

// Close ends the downloads of blobs that come whole for want of ranges. Other reads go on.
func (a *Blobs) Close() { a.spools.close() }

// Blob returns the blob that d describes, in the repository of the image that ref names. No I/O.
func (a *Blobs) Blob(r *registry.Repository, ref string, d ocispec.Descriptor) *Blob {
	at := location{repo: r, ref: ref, state: a.state(r, d.Digest)}
	return &Blob{all: a, desc: d, locations: []location{at}}
}

// Target returns where a repository's hosts redirect those who ask for a blob.
func (a *Blobs) Target(r *registry.Repository, d digest.Digest) *registry.Target {
	return &a.state(r, d).target
}

func (a *Blobs) state(r *registry.Repository, d digest.Digest) *state {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := stateKey{r.String(), d}
	s := a.states[key]
	if s == nil {
		if len(a.states) >= maxStates {
			clear(a.states) // costs a redirect each
		}
		s = &state{}
		a.states[key] = s
	}
	return s
}
