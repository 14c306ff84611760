package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/fs/store"
	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/index/bundle"
	"github.com/mica-snapshotter/mica/remote"
)

// maxTrees bounds the trees blob of one image. At 17 bytes a file it has 15 million files.
const maxTrees = 256 << 20

// imageIndex is what a registry has of an image's layers. A nil one has no layers.
type imageIndex struct {
	*bundle.Bundle
	windows ocispec.Descriptor
}

func (b *imageIndex) find(d digest.Digest) (bundle.Record, bool) {
	if b != nil {
		for _, l := range b.Layers() {
			if l.Layer == d {
				return l, true
			}
		}
	}
	return bundle.Record{}, false
}

// windowsOf says where the windows of a layer are.
func (b *imageIndex) windowsOf(l bundle.Record) (store.Windows, error) {
	end := b.windows.Size
	if r := l.Windows; r.Off > end || r.Size > end-r.Off {
		return store.Windows{},
			fmt.Errorf("%w: windows of layer %s at [%d, +%d) of a blob of %d bytes",
				index.ErrCorrupt, l.Layer, r.Off, r.Size, end)
	}
	return store.Windows{Blob: b.windows.Digest, BlobSize: end, Off: l.Windows.Off}, nil
}

// What a pull waits for before it does without an index.
const (
	// lookupTime is how long after its beginning a pull goes on without receiving a byte of the
	// trees, lookupLeast how long it waits for them in any case.
	lookupTime, lookupLeast = 4500 * time.Millisecond, 500 * time.Millisecond
	// treesLeast is how many bytes of the trees have to come in every treesTime: who sends less is
	// as good as silent.
	treesLeast, treesTime = 4 << 10, 4 * time.Second
	// maxIndexes is how many indexes of an image are tried.
	maxIndexes = 3
)

// find looks for an index and a profile among what refers to the image's manifest, and starts to
// replay the profile. An index that is not usable, does not come or cannot be looked for counts as
// none: the image is then brought as one that was never indexed. An error says that the pull is
// over.
func (p *Pull) find() (b *imageIndex, err error) {
	start := time.Now()
	defer func() {
		if b == nil {
			p.waited = time.Since(start)
		}
	}()
	tell := sync.OnceFunc(func() { close(p.told) })
	defer tell()
	p.before = int64(p.image.Requests())
	p.image.Connect(p.ctx, connections)
	far := time.AfterFunc(farAfter, func() { p.image.Connect(p.ctx, farConnections) })
	defer far.Stop()
	// Of both types: index and profile are to come in one answer.
	refs, err := p.image.Referrers(p.ctx, p.key.manifest, artifact.Type, published.ArtifactType)
	far.Stop()
	took := time.Since(start)
	if err != nil {
		if p.ctx.Err() == nil {
			p.all.o.Log.Warn("the registry does not tell of an index: it is taken to have none",
				"err", err, "took", took, "ref", p.name())
		}
		p.without = fmt.Sprintf("the registry does not tell of an index: %v", err)
		return nil, p.ctx.Err()
	}
	p.roundTrip = took / time.Duration(1+max(p.Requests(), 1)) // one was the connection's
	p.all.o.Log.DebugContext(p.ctx, "asked for referrers",
		"ref", p.name(), "found", len(refs), "took", took)
	indexes := artifact.Of(artifact.Type, refs)
	p.without = noIndex
	p.toldOf = p.layersTold(indexes, took)
	tell()
	p.fetchEarly(refs, indexes, took)
	p.replayBest(refs)
	for _, d := range indexes[:min(len(indexes), maxIndexes)] {
		b, err := p.openBundle(d, start)
		if err == nil {
			p.all.o.Log.DebugContext(p.ctx, "index found", "ref", p.name(), "index", d.Digest,
				"bytes", d.Size, "took", time.Since(start))
			return b, nil
		}
		if p.ctx.Err() != nil {
			return nil, p.ctx.Err()
		}
		p.all.o.Log.Error("index from the registry is not usable", "err", Advise(err),
			"index", d.Digest, "ref", p.name())
		p.without = fmt.Sprintf("no index of it can be used: %v", Advise(err))
		if errors.Is(err, errSlow) {
			break
		}
	}
	return nil, nil
}

// Resolve waits until the look-up has ended. An error says that the pull is over.
func (p *Pull) Resolve() error {
	_, err := p.bundle()
	return err
}

// RoundTrip is about how long the registry takes to answer, once the pull is resolved.
func (p *Pull) RoundTrip() time.Duration { return p.roundTrip }

// Requests is how many requests of the image there have been since the pull began.
func (p *Pull) Requests() int64 { return int64(p.image.Requests()) - p.before }

// replayBest starts the replay of the best profile, with what is published. Where that does not
// come in the list of referrers it is fetched beside the index, for which a container waits.
func (p *Pull) replayBest(refs []ocispec.Descriptor) {
	replay := func(got *profile.Profile) {
		if best := p.all.choose(p.key.manifest, got); best != nil {
			p.whenAsked(func() { p.replay(best) })
		}
	}
	d, ok := published.Newest(refs)
	if !ok {
		replay(nil)
		return
	}
	content, ok, err := published.FromReferrer(d)
	if ok || err != nil {
		replay(p.usable(d, content, err))
		return
	}
	p.all.host.Go(func(context.Context) {
		content, err := p.fetchProfile(d)
		replay(p.usable(d, content, err))
	})
}

// usable returns the published profile, nil if it is of no use: a start is slower without, and no
// more.
func (p *Pull) usable(d ocispec.Descriptor, content []byte, err error) *profile.Profile {
	var got *profile.Profile
	if err == nil {
		got, err = profile.Decode(content, profile.Limits{})
	}
	if err != nil && p.ctx.Err() == nil {
		p.all.o.Log.Warn("profile from the registry is not usable", "err", err,
			"profile", d.Digest, "ref", p.name())
	}
	return got
}

func (p *Pull) fetchProfile(d ocispec.Descriptor) ([]byte, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.all.o.Deadline)
	defer cancel()
	return published.Fetch(ctx, p.image, d)
}

// openBundle fetches the trees of the index that a referrer describes, for a pull that began at
// start.
func (p *Pull) openBundle(d ocispec.Descriptor, start time.Time) (*imageIndex, error) {
	wait := p.image.Patience(p.ctx, remote.AboutBlob,
		max(lookupTime-time.Since(start), lookupLeast))
	ctx, cancel := context.WithTimeoutCause(p.ctx, wait, errSlow)
	x, err := artifact.Find(ctx, p.image, d)
	cancel()
	if err != nil {
		return nil, err
	}
	f, err := p.fetchTrees(x.Trees, wait)
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(f, x.Trees.Size, p.all.o.Limits.bundle())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// The file has no name; it goes with the last who reads it.
	context.AfterFunc(p.ctx, func() { f.Close() })
	return &imageIndex{Bundle: b, windows: x.Windows}, nil
}

// fetchTrees fetches the trees blob into a file without a name. It waits so long for the first
// bytes.
func (p *Pull) fetchTrees(d ocispec.Descriptor, wait time.Duration) (*os.File, error) {
	if d.Size > maxTrees {
		return nil, fmt.Errorf("trees of %d bytes: at most %d are accepted", d.Size, maxTrees)
	}
	var f *os.File
	if err := p.all.o.Store.Relieved(func() (err error) {
		f, err = os.CreateTemp(p.all.o.Root, "trees-")
		return err
	}); err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	ctx, w := watchPace(p.ctx, wait)
	err := p.copyBlob(ctx, f, d, w)
	w.stop()
	switch {
	case err == nil:
		p.image.Answered(p.ctx, remote.AboutBlob)
	case errors.Is(err, errSlow):
		p.image.Unanswered(p.ctx, remote.AboutBlob, func(ctx context.Context) error {
			return p.image.Blob(d).Aside().ReadAt(ctx, make([]byte, min(d.Size, 1)), 0)
		})
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (p *Pull) copyBlob(ctx context.Context, f *os.File, d ocispec.Descriptor, w *pace) error {
	blob := p.image.Blob(d).Aside()
	first := quickest(p.left(), d.Size, p.roundTrip)
	size := first.even(d.Size)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(firstRequests)
	for off := int64(0); off < d.Size; off += size {
		g.Go(func() error {
			n := min(size, d.Size-off)
			start := time.Now()
			body, err := blob.Range(ctx, off, n)
			if err != nil {
				return err
			}
			defer body.Close()
			b := make([]byte, n)
			if _, err := io.ReadFull(w.reader(body), b); err != nil {
				return err
			}
			host := p.all.o.Budget.Host(source.RegistryOf(p.name()))
			host.Answered(time.Since(start) / time.Duration(first.rounds))
			return p.all.o.Store.Relieved(func() error {
				_, err := f.WriteAt(b, off)
				return err
			})
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

// errSlow is wrapped by the errors of what was given up because next to nothing came of it.
var errSlow = errors.New("next to nothing has come")

// pace ends a context when next to nothing comes by its readers.
type pace struct {
	came   atomic.Int64
	cancel context.CancelCauseFunc
	done   chan struct{}
	ended  chan struct{}
}

// watchPace returns a context that ends when no bytes have come after wait, or fewer than
// treesLeast in any treesTime after that. Pair it with stop.
func watchPace(ctx context.Context, wait time.Duration) (context.Context, *pace) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &pace{cancel: cancel, done: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for least := int64(1); ; wait, least = treesTime, treesLeast {
			select {
			case <-w.done:
				return
			case <-time.After(wait):
			}
			if n := w.came.Swap(0); n < least {
				cancel(fmt.Errorf("%w: %d bytes in %v", errSlow, n, wait.Round(time.Millisecond)))
				return
			}
		}
	}()
	return ctx, w
}

func (w *pace) stop() {
	close(w.done)
	<-w.ended
	w.cancel(context.Canceled)
}

// reader returns r, whose bytes count.
func (w *pace) reader(r io.Reader) io.Reader { return paced{w, r} }

type paced struct {
	w *pace
	r io.Reader
}

// Read implements io.Reader.
func (p paced) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.w.came.Add(int64(n))
	return n, err
}

// replay starts to fetch what a profile names of the layers of the pull's image, until the pull
// ends.
func (p *Pull) replay(from *profile.Profile) {
	p.all.mu.Lock()
	ref, layers := p.ref, p.layers
	p.all.mu.Unlock()
	context.AfterFunc(p.ctx, p.all.host.Replay(ref, layers, from))
}

// choose returns the profile to replay: what this node has seen of the image and what was published
// of it.
func (a *Pulls) choose(manifest digest.Digest, published *profile.Profile) *profile.Profile {
	if a.o.Profiles == nil {
		return published
	}
	own, err := a.o.Profiles.Load(manifest)
	if err != nil {
		return published // there is none, or it is damaged and will be replaced
	}
	return profile.Merge(published, own)
}
