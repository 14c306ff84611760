package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
)

// maxTrees bounds the trees blob of one image. At 17 bytes a file it has 15 million files.
const maxTrees = 256 << 20

// bundle is an image's index from the registry. A nil bundle has no layers.
type bundle struct {
	*index.Bundle
	windows ocispec.Descriptor
}

func (b *bundle) find(d digest.Digest) (index.BundleLayer, bool) {
	if b != nil {
		for _, l := range b.Layers() {
			if l.Layer == d {
				return l, true
			}
		}
	}
	return index.BundleLayer{}, false
}

// windowsOf says where the windows of a layer are.
func (b *bundle) windowsOf(l index.BundleLayer) (store.Windows, error) {
	end := b.windows.Size
	if r := l.Windows; r.Off > end || r.Size > end-r.Off {
		return store.Windows{}, fmt.Errorf("%w: windows of layer %s at [%d, +%d) of a blob of %d bytes", index.ErrCorrupt, l.Layer, r.Off, r.Size, end)
	}
	return store.Windows{Blob: b.windows.Digest, BlobSize: end, Off: l.Windows.Off}, nil
}

// find looks for an index and a profile among what refers to the image's manifest, and starts to replay
// the profile. An index that is not usable counts as none: the image is then brought as one that was never
// indexed.
func (p *pull) find() (*bundle, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.t.o.PullDeadline)
	defer cancel()
	start := time.Now()
	tell := sync.OnceFunc(func() { close(p.told) })
	defer tell()
	p.image.Connect(ctx, connections)
	far := time.AfterFunc(farAfter, func() { p.image.Connect(ctx, farConnections) })
	defer far.Stop()
	// Not by type: index and profile are to come in one answer.
	refs, err := p.image.Referrers(ctx, p.key.manifest, "")
	if err != nil {
		return nil, err
	}
	far.Stop()
	took := time.Since(start)
	p.roundTrip = took / time.Duration(1+max(p.image.Stats().Requests, 1)) // one was the connection's
	p.t.log.DebugContext(ctx, "asked for referrers", "ref", p.name(), "found", len(refs), "took", took)
	indexes := artifact.Indexes(refs)
	p.listed = p.list(indexes, took)
	tell()
	p.fetchEarly(refs, indexes, took)
	if best := p.t.choose(p.key.manifest, p.readProfile(ctx, refs)); best != nil {
		p.whenAsked(func() { p.replay(best) })
	}
	for _, d := range indexes {
		b, err := p.openBundle(ctx, d)
		if err == nil {
			p.t.log.DebugContext(ctx, "index found", "ref", p.name(), "index", d.Digest, "bytes", d.Size, "took", time.Since(start))
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		p.t.log.Error("index from the registry is not usable", "ref", p.name(), "index", d.Digest, "err", advise(err))
	}
	return nil, nil
}

// readProfile returns the published profile, nil if there is none that is usable: a start is slower without, and no more.
func (p *pull) readProfile(ctx context.Context, refs []ocispec.Descriptor) *profile.Profile {
	d, ok := published.Newest(refs)
	if !ok {
		return nil
	}
	got, err := p.fetchProfile(ctx, d)
	if err != nil {
		p.t.log.Warn("profile from the registry is not usable", "ref", p.name(), "profile", d.Digest, "err", err)
		return nil
	}
	return got
}

func (p *pull) fetchProfile(ctx context.Context, d ocispec.Descriptor) (*profile.Profile, error) {
	content, ok, err := published.FromReferrer(d)
	if err != nil {
		return nil, err
	}
	if !ok {
		m, err := p.image.Manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		blob, err := published.Parse(m)
		if err != nil {
			return nil, err
		}
		if content, err = p.image.FetchBlob(ctx, blob, published.MaxBlob); err != nil {
			return nil, err
		}
	}
	return profile.Decode(content, profile.Limits{})
}

// openBundle fetches the trees of the index that a referrer describes.
func (p *pull) openBundle(ctx context.Context, d ocispec.Descriptor) (*bundle, error) {
	x, ok, err := artifact.FromReferrer(d)
	if err != nil {
		return nil, err
	}
	if !ok {
		m, err := p.image.Manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		if x, err = artifact.Parse(m); err != nil {
			return nil, err
		}
	}
	f, err := p.fetchTrees(ctx, x.Trees)
	if err != nil {
		return nil, err
	}
	b, err := index.OpenBundle(f, x.Trees.Size, p.t.o.Limits.bundle())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// The file has no name; it goes with the last who reads it.
	context.AfterFunc(p.ctx, func() { f.Close() })
	return &bundle{Bundle: b, windows: x.Windows}, nil
}

// fetchTrees fetches the trees blob into a file without a name.
func (p *pull) fetchTrees(ctx context.Context, d ocispec.Descriptor) (*os.File, error) {
	if d.Size > maxTrees {
		return nil, fmt.Errorf("trees of %d bytes: at most %d are accepted", d.Size, maxTrees)
	}
	f, err := os.CreateTemp(p.t.o.Root, "trees-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := p.copyBlob(ctx, f, d); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (p *pull) copyBlob(ctx context.Context, f *os.File, d ocispec.Descriptor) error {
	blob := p.image.Blob(d)
	first := quickest(p.left(), d.Size, p.roundTrip)
	size := first.even(d.Size)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(firstRequests)
	for off := int64(0); off < d.Size; off += size {
		g.Go(func() error {
			b := make([]byte, min(size, d.Size-off))
			start := time.Now()
			if err := blob.ReadAt(ctx, b, off); err != nil {
				return err
			}
			p.t.budget.Answered(placeOf(p.name()), time.Since(start)/time.Duration(first.rounds))
			_, err := f.WriteAt(b, off)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	v := d.Digest.Verifier()
	if _, err := io.Copy(v, io.NewSectionReader(f, 0, d.Size)); err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("blob %s: content has another digest", d.Digest)
	}
	return nil
}
