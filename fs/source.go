package fs

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

var _ layer.Source = (*source)(nil)

// origins are the images that brought a layer: where its blob can be read. The latest is asked
// first, because its registry and credentials are the likeliest to work.
type origins struct {
	client   *remote.Client
	patience time.Duration // how long registries are asked that refuse; 0: layer.DefaultDeadline
	early    *early

	mu   sync.Mutex
	refs []string // the latest last
}

// blob returns a blob of the images, which is read from the latest first.
func (o *origins) blob(d ocispec.Descriptor) (*remote.Blob, error) {
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
			blob = blob.Or(image.Blob(d))
		}
	}
	if blob == nil {
		return nil, errors.Join(append(errs, errors.New("no image is known that has this layer"))...)
	}
	return blob.Patient(cmp.Or(o.patience, layer.DefaultDeadline)), nil
}

// latest returns the image that brought the layer last.
func (o *origins) latest() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.refs) == 0 {
		return ""
	}
	return o.refs[len(o.refs)-1]
}

// add makes ref the latest, and says whether it was not.
func (o *origins) add(ref string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	refs := store.AddRef(o.refs, ref)
	changed := !slices.Equal(refs, o.refs)
	o.refs = refs
	return changed
}

// source reads a range of a blob from whichever images of its origins have it. It is a layer.Source, and
// streams.
type source struct {
	early   *early
	origins *origins
	image   *remote.Image      // instead of origins: the one that has it, which is asked only if it answers at once
	desc    ocispec.Descriptor // of the whole blob
	off     int64              // where the source begins in the blob
	size    int64
}

func newSource(o *origins, d digest.Digest, blobSize, off, size int64) *source {
	return &source{early: o.early, origins: o, desc: ocispec.Descriptor{Digest: d, Size: blobSize}, off: off, size: size}
}

// newCopySource returns the source of a copy that lies beside an image.
func newCopySource(image *remote.Image, e *early, d ocispec.Descriptor) *source {
	return &source{early: e, image: image, desc: d, size: d.Size}
}

// blob returns the blob where it can be read.
func (s *source) blob() (*remote.Blob, error) {
	if s.image != nil {
		return s.image.Blob(s.desc), nil
	}
	return s.origins.blob(s.desc)
}

// Size returns the number of bytes.
func (s *source) Size() int64 { return s.size }

// Range returns n bytes from off on as they come: where one registry breaks off, another goes on. It
// waits for registries that do not answer until ctx ends, and for those that refuse as long as the
// origins have patience. held: the first of the bytes, at least, were asked for in advance.
func (s *source) Range(ctx context.Context, off, n int64) (body io.ReadCloser, held bool, err error) {
	if off < 0 || n < 0 || n > s.size-off {
		return nil, false, fmt.Errorf("read [%d, +%d) of %d bytes of blob %s: out of range", off, n, s.size, s.desc.Digest)
	}
	if n > 0 && s.early.reach(s.desc, s.off+off) != nil {
		return &earlyBody{s: s, ctx: ctx, off: s.off + off, end: s.off + off + n}, true, nil
	}
	body, err = s.ask(ctx, s.off+off, n)
	return body, false, err
}

// ask asks the registries for n bytes from off on, in the blob. Nobody else need do so.
func (s *source) ask(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.early.spare(s.desc, off, n)
	blob, err := s.blob()
	if err != nil {
		return nil, err
	}
	if s.image != nil {
		return openImpatient(ctx, blob, off, n)
	}
	return blob.Range(ctx, off, n)
}

// Place implements layer.Source.
func (s *source) Place() string {
	if s.image != nil {
		return "" // it is asked for a copy alone
	}
	return placeOf(s.origins.latest())
}

// placeOf returns the registry that a reference names. (If it has a mirror, the way is most often
// the mirror's.)
func placeOf(ref string) string {
	host, _, _ := strings.Cut(ref, "/")
	return host
}

// Planned implements layer.Source.
func (s *source) Planned(off, n int64) bool { return s.early.planned(s.desc, s.off+off, n) }

// Suspect implements layer.Source: whoever sent these bytes is asked last for a while. Of a copy nothing more is fetched in advance.
func (s *source) Suspect(off, n int64) {
	if s.image != nil {
		s.early.suspect(s.desc.Digest, 0, s.size)
		return
	}
	s.early.suspect(s.desc.Digest, s.off+off, n)
	if blob, err := s.blob(); err == nil { // else nobody sent them
		blob.Suspect(s.off+off, n)
	}
}
