package remote

import (
	"context"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob is one blob of an image. Its size is the descriptor's: a host that has another is wrong.
type Blob struct {
	image *Image
	desc  ocispec.Descriptor
	state *blobState
}

// blobState is what is known of a blob, shared by the images of a repository.
type blobState struct {
	target target

	mu     sync.Mutex
	absent map[*host]time.Time // hosts that did not have it, or refused it, come last until then
}

// absentFor is how long a host that did not have a blob comes last. A mirror that caches may have it then.
const absentFor = 5 * time.Minute

func (s *blobState) lacks(h *host, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.absent[h])
}

func (s *blobState) setAbsent(h *host, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.absent, func(_ *host, until time.Time) bool { return !now.Before(until) })
	if s.absent == nil {
		s.absent = map[*host]time.Time{}
	}
	s.absent[h] = now.Add(absentFor)
}

// Blob returns the blob that d describes. No I/O.
func (i *Image) Blob(d ocispec.Descriptor) *Blob {
	return &Blob{image: i, desc: d, state: i.repo.blob(d.Digest)}
}

// Size returns the blob's size in bytes.
func (b *Blob) Size() int64 { return b.desc.Size }

// Digest returns the blob's digest.
func (b *Blob) Digest() digest.Digest { return b.desc.Digest }

// ReadAt fills p with the blob's bytes from off on, all of them or it returns an error. It tries, at every host, for as long as
// ctx lasts; ErrNotFound and ErrUnauthorized come at once. Parallel calls are allowed.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) error {
	s, err := b.open(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer s.Close()
	_, err = io.ReadFull(s, p)
	return err
}

// Range returns the n bytes from off on as a stream, which goes on by itself, at another host if need be, where a body
// breaks off. It brings n bytes and io.EOF, or an error other than io.EOF and io.ErrUnexpectedEOF. ctx bounds the whole
// stream. The caller closes it.
func (b *Blob) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return b.open(ctx, off, n)
}

func (b *Blob) open(ctx context.Context, off, n int64) (*stream, error) {
	what := fmt.Sprintf("read %s of %s", b.desc.Digest, b.image.ref)
	if off < 0 || n < 0 || off > b.desc.Size || n > b.desc.Size-off {
		return nil, fmt.Errorf("%s: bytes %d+%d are outside its %d", what, off, n, b.desc.Size)
	}
	s := &stream{ctx: ctx, blob: b, off: off, left: n}
	if n == 0 {
		return s, nil
	}
	if err := b.desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	set, err := b.image.client.hostsOf(ctx, b.image.repo.registry)
	if err != nil {
		return nil, err
	}
	hosts := set.with(docker.HostCapabilityPull)
	if len(hosts) == 0 {
		return nil, fmt.Errorf("%s: no host of %s may be pulled from", what, b.image.repo.registry)
	}
	s.rot = newRotation(b.image.client, &b.image.stats, what, hosts)
	s.rot.lacks = b.state.lacks
	if err := s.connect(); err != nil {
		return nil, err
	}
	return s, nil
}
