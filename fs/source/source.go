// Package source reads ranges of blobs from whoever has them: the images that brought a layer, the
// latest first, and what was fetched in advance.
//
// # The data's way
//
//	fs/layer ── Range ─▶ Source ─┬─ Prefetch: what a pull has asked for ─▶ copied from memory
//	                             └─ Origins: the images that brought the layer ─▶ remote
//
// A pull of an image without a copy of what a start reads (package copies) has the first windows
// fetched before there is an index that could say which layer wants them. A Source takes from it
// what it has, and asks for the rest. Whoever reads verifies these bytes as all others.
//
// # Concurrency
//
// All methods may run in parallel. Prefetch keeps at most prefetchBytes, of all pulls together. No
// lock is held over the network, or another one.
package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/remote"
)

var _ layer.Source = (*Source)(nil)

// Origins are the images that brought a layer: where its blob can be read. The latest is asked
// first, because its registry and credentials are the likeliest to work. NewOrigins makes them.
type Origins struct {
	client   *remote.Client
	patience time.Duration // how long registries are asked that refuse; 0: layer.DefaultDeadline
	prefetch *Prefetch
	// Told, unless nil, is told why a read waits. It is set before the first.
	Told func(error)

	mu   sync.Mutex
	refs []string // the latest last
}

// NewOrigins returns images with these references, the latest last, whose registries are asked for
// so long if they refuse; 0: for layer.DefaultDeadline. Their sources take from p what it has.
func NewOrigins(
	client *remote.Client, patience time.Duration, p *Prefetch, refs []string,
) *Origins {
	return &Origins{client: client, patience: patience, prefetch: p, refs: refs}
}

// Blob returns a blob of the images, which is read from the latest first.
func (o *Origins) Blob(d ocispec.Descriptor) (*remote.Blob, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var blob *remote.Blob
	var errs []error
	for i := len(o.refs) - 1; i >= 0; i-- {
		image, err := o.client.Image(o.refs[i])
		switch {
		case err != nil:
			errs = append(errs, err)
		case blob == nil:
			blob = image.Blob(d)
		default:
			blob = blob.AlsoFrom(image.Blob(d))
		}
	}
	if blob == nil {
		return nil, errors.Join(append(errs, errors.New("no image is known that has this layer"))...)
	}
	return blob.WithPatience(cmp.Or(o.patience, layer.DefaultDeadline)).Telling(o.Told), nil
}

// Latest returns the image that brought the layer last.
func (o *Origins) Latest() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.refs) == 0 {
		return ""
	}
	return o.refs[len(o.refs)-1]
}

// Add makes ref the latest, and says whether it was not.
func (o *Origins) Add(ref string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	refs := store.AddRef(o.refs, ref)
	changed := !slices.Equal(refs, o.refs)
	o.refs = refs
	return changed
}

// Source reads a range of a blob from whichever images of its origins have it. It is a
// layer.Source, and streams. New makes it.
type Source struct {
	prefetch *Prefetch
	origins  *Origins
	desc     ocispec.Descriptor // of the whole blob
	off      int64              // where the source begins in the blob
	size     int64
}

// New returns a source of the size bytes from off on of a blob of blobSize bytes.
func New(o *Origins, d digest.Digest, blobSize, off, size int64) *Source {
	desc := ocispec.Descriptor{Digest: d, Size: blobSize}
	return &Source{prefetch: o.prefetch, origins: o, desc: desc, off: off, size: size}
}

// Size returns the number of bytes.
func (s *Source) Size() int64 { return s.size }

// Range returns n bytes from off on as they come: where one registry breaks off, another goes on.
// It waits for registries that do not answer until ctx ends, and for those that refuse as long as
// the origins have patience.
func (s *Source) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || n > s.size-off {
		return nil, fmt.Errorf("read [%d, +%d) of %d bytes of blob %s: out of range",
			off, n, s.size, s.desc.Digest)
	}
	if s.prefetch.find(s.desc.Digest, s.off+off) != nil {
		return &earlyBody{s: s, ctx: ctx, off: s.off + off, end: s.off + off + n}, nil
	}
	return s.ask(ctx, s.off+off, n)
}

// ask asks the registries for n bytes from off on, in the blob.
func (s *Source) ask(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	blob, err := s.origins.Blob(s.desc)
	if err != nil {
		return nil, err
	}
	return blob.Range(ctx, off, n)
}

// Place implements layer.Source.
func (s *Source) Place() string { return RegistryOf(s.origins.Latest()) }

// RegistryOf returns the registry that a reference names. (If it has a mirror, the way is most
// often the mirror's.)
func RegistryOf(ref string) string {
	host, _, _ := strings.Cut(ref, "/")
	return host
}

// Suspect implements layer.Source: whoever sent these bytes is asked last for a while.
func (s *Source) Suspect(off, n int64) {
	s.prefetch.suspect(s.desc.Digest, s.off+off, n)
	if blob, err := s.origins.Blob(s.desc); err == nil { // else nobody sent them
		blob.Suspect(s.off+off, n)
	}
}
