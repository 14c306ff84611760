package ranges

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/remote/registry"
)

// Blob is one blob of an image, or of several images that have it. Its size is the descriptor's: a
// host that has another is wrong. Blobs.Blob makes it.
type Blob struct {
	all       *Blobs
	desc      ocispec.Descriptor
	locations []location    // at least one; the first is asked first
	patience  time.Duration // see WithPatience
	aside     bool          // see Aside
	told      func(error)   // see Telling; nil: nobody is
}

// location is a repository that has, or may have, a blob.
type location struct {
	repo  *registry.Repository
	ref   string // the image's
	state *state
}

// AlsoFrom returns the same blob, which is read from other's image as well: by reads that b's own
// fails, in the middle too. Images of a repository that b has already add nothing.
func (b *Blob) AlsoFrom(other *Blob) *Blob {
	out := *b
	out.locations = slices.Clone(b.locations)
	for _, p := range other.locations {
		if !slices.ContainsFunc(out.locations, func(q location) bool {
			return q.state == p.state
		}) {
			out.locations = append(out.locations, p)
		}
	}
	return &out
}

// WithPatience returns the same blob, of which reads go on where every host refuses it (404, 401,
// 403): it is for readers who would rather wait until credentials are renewed or a registry is
// whole again. When it has been refused for d, without a read in between that succeeded, a read
// whose attempts are all refused fails.
func (b *Blob) WithPatience(d time.Duration) *Blob {
	out := *b
	out.patience = d
	return &out
}

// Telling returns the same blob, of which reads tell why they wait, whenever every host has failed.
// told may be called in parallel.
func (b *Blob) Telling(told func(error)) *Blob {
	out := *b
	out.told = told
	return &out
}

// Aside returns the same blob, of which a read that fails is not held against a host in others: it
// is for those who can do without it.
func (b *Blob) Aside() *Blob {
	out := *b
	out.aside = true
	return &out
}

// Suspect reports that the n bytes from off on, as last read, were wrong. For some time the host
// that sent them is asked last, past its caches, and its known redirect is not used. If two hosts
// have answered overlapping reads, the later one is blamed.
func (b *Blob) Suspect(off, n int64) {
	var last serving
	var at *state
	for _, p := range b.locations {
		if v := p.state.latest(off, n); v.seq > last.seq {
			last, at = v, p.state
		}
	}
	if at != nil {
		at.note(last.host, func(r *record) { r.blame(time.Now()) })
		at.target.Forget()
	}
	b.all.spools.suspect(b.desc.Digest)
}

// Forget says that nobody is going to read the blob soon: what is kept of it, because hosts ignore
// ranges, goes.
func (b *Blob) Forget() { b.all.spools.forget(b.desc.Digest) }

// Size returns the blob's size in bytes.
func (b *Blob) Size() int64 { return b.desc.Size }

// Ranged says whether a host has answered a read of a part of the blob with that part alone.
func (b *Blob) Ranged() bool { return b.locations[0].state.honoured() }

// ReadAt fills p with the blob's bytes from off on, all of them or it returns an error. It tries,
// at every host, for as long as ctx lasts; ErrNotFound and ErrUnauthorized come at once. Parallel
// calls are allowed.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) error {
	s, err := b.open(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer s.Close()
	_, err = io.ReadFull(s, p)
	return err
}

// Range returns the n bytes from off on as a stream, which goes on by itself, at another host if
// need be, where a body breaks off. It brings n bytes and io.EOF, or an error other than io.EOF and
// io.ErrUnexpectedEOF. ctx bounds the whole stream. The caller closes it.
func (b *Blob) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s, err := b.open(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (b *Blob) open(ctx context.Context, off, n int64) (*stream, error) {
	what := b.what()
	if off < 0 || n < 0 || off > b.desc.Size || n > b.desc.Size-off {
		return nil, fmt.Errorf("%s: bytes %d+%d are outside its %d", what, off, n, b.desc.Size)
	}
	if n == 0 {
		return &stream{ctx: ctx, blob: b, off: off}, nil
	}
	if err := b.desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w (%s)", err, what)
	}
	s := b.stream(ctx, off, n, b.way(off, n))
	if err := s.connect(); err != nil {
		return nil, err
	}
	return s, nil
}

func (b *Blob) what() string {
	return fmt.Sprintf("read %s of %s", b.desc.Digest, b.locations[0].ref)
}

// way chooses how a range is read.
func (b *Blob) way(off, n int64) way {
	if n == b.desc.Size {
		return whole
	}
	spool := b.all.spools.get(b.desc.Digest)
	switch {
	case spool == nil:
		return ranged
	case spool.near(off + n):
		return spooled
	case slices.ContainsFunc(b.locations, func(p location) bool { return p.state.honoured() }):
		return ranged
	case spool.probe(time.Now()):
		return probing
	}
	return spooled
}

// stream returns a stream that has not begun.
func (b *Blob) stream(ctx context.Context, off, n int64, w way) *stream {
	first := b.locations[0]
	rot := first.repo.Rotation(b.what(), nil)
	rot.Aside, rot.Small, rot.Told = b.aside, b.aside, b.told
	rot.Penalty = func(e *registry.Candidate, now time.Time) int {
		return b.at(e).about(e.Host).penalty(now)
	}
	rot.Reload = func(ctx context.Context) ([]registry.Candidate, error) { return b.hosts(ctx, w) }
	if b.patience > 0 {
		rot.GiveUp = 0
		rot.Ends = func(now time.Time) bool {
			return first.state.refusedFor(2*b.patience, now) >= b.patience
		}
	}
	return &stream{ctx: ctx, blob: b, rot: rot, off: off, left: n, way: w}
}

// at returns what is known of the blob where a host is asked for it.
func (b *Blob) at(e *registry.Candidate) *state {
	i := slices.IndexFunc(b.locations, func(p location) bool { return p.repo == e.Of })
	return b.locations[i].state
}

// hosts returns who may have the blob, those of the first location first.
func (b *Blob) hosts(ctx context.Context, w way) ([]registry.Candidate, error) {
	var out []registry.Candidate
	now := time.Now()
	var errs []error
	for _, p := range b.locations {
		set, err := p.repo.Hosts(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, h := range set.With(docker.HostCapabilityPull) {
			whole := w == ranged && now.Before(p.state.about(h).whole)
			out = append(out, registry.Candidate{Host: h, Of: p.repo, Whole: whole})
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(append(errs, fmt.Errorf("no host of %s may be pulled from",
			b.locations[0].repo.Registry()))...)
	}
	return out, nil
}
