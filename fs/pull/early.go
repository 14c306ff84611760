package pull

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/copies"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index/artifact"
)

const (
	// Requests at a time, and bytes of each. Where a round trip is long there are more of them, as
	// a connection begins slowly; where it is short, two keep the line busy, and more than that
	// only the cores, when a pull ends and a container is created.
	earlyRequests, earlyRequest       = 2, 4 << 20
	earlyFarRequests, earlyFarRequest = 16, 256 << 10
	// earlyFarLater is how many bytes requests have when each connection has had one.
	earlyFarLater = 1 << 20
	// earlyFar is how long the first answer of a registry takes, connection included, that is far
	// away.
	earlyFar = 50 * time.Millisecond
	// limitedCopy is how many bytes of a copy are pushed where there is a limit of bandwidth.
	limitedCopy = 8 << 20
	// windowsBytes is how many bytes of the windows are fetched for an image without a copy.
	windowsBytes = 1 << 20
	// earlyFor is how long these are asked for, and kept.
	earlyFor = 15 * time.Second
)

// fetchEarly begins to fetch the copy of what a start of this image reads that the newest profile
// among the referrers, which took so long to come, has beside it; for an image without one the
// windows, which the first of its bytes need whichever they are.
func (p *Pull) fetchEarly(refs, indexes []ocispec.Descriptor, took time.Duration) {
	if len(indexes) == 0 || !p.all.o.Early {
		return
	}
	x, ok, err := artifact.FromReferrer(indexes[0])
	if !ok || err != nil {
		return // whoever opens it will meet the error
	}
	if !p.pushCopy(refs, x, took) {
		p.fetchWindows(x)
	}
}

// fetchWindows begins to fetch the first of an index's windows. It leaves the trees the requests
// that they need.
func (p *Pull) fetchWindows(x artifact.Index) {
	n := min(x.Windows.Size, windowsBytes)
	left := p.left()
	left -= quickest(left, x.Trees.Size, p.roundTrip).requests(x.Trees.Size)
	size := quickest(max(left, 1), n, p.roundTrip).even(n)
	early := p.all.o.Prefetch.Early(x.Windows, n, size)
	p.all.host.Go(func(context.Context) {
		ctx, cancel := context.WithTimeout(p.ctx, earlyFor)
		defer cancel()
		early.Fetch(ctx, p.image)
	})
}

// pushCopy begins to push what the copy of a profile has of layers that are not here. false: there
// is none that is usable.
func (p *Pull) pushCopy(
	refs []ocispec.Descriptor, x artifact.Index, took time.Duration,
) bool {
	d, _ := published.Newest(refs)
	c, ok, err := published.CopyOf(d)
	if err != nil {
		p.all.o.Log.Warn("copy of what a start reads is not usable",
			"ref", p.name(), "artifact", d.Digest, "err", err)
	}
	if !ok || c.Trees != x.Trees.Digest {
		return false
	}
	missing := p.missing()
	push := p.all.o.Copies.Begin(p.ctx, copies.Copy{
		Image: p.image, Repository: proof.RepositoryOf(p.name()), Windows: x.Windows.Digest,
		Blob: c.Blob,
		Frames: slices.DeleteFunc(c.Frames, func(f published.Frame) bool {
			// Behind limitedCopy all is the scheduler's, which keeps to the limit.
			return !slices.Contains(missing, f.Layer) ||
				p.all.o.Limited && f.Off+f.Size > limitedCopy
		}),
	})
	requests := earlyRequests
	if took >= earlyFar {
		requests = earlyFarRequests
	}
	size := func(n int) int64 { // bytes of the nth request
		switch {
		case took < earlyFar:
			return earlyRequest
		case n < earlyFarRequests:
			return earlyFarRequest
		}
		return earlyFarLater
	}
	p.all.host.Go(func(context.Context) { push.Run(requests, size) })
	return true
}

// missing returns the layers of the image that are not here.
func (p *Pull) missing() (blobs []digest.Digest) {
	p.all.mu.Lock()
	jobs := slices.Clone(p.jobs)
	p.all.mu.Unlock()
	for _, j := range jobs {
		if l, err := p.all.o.Store.Layer(j.layer); err == nil {
			l.Close()
			continue
		}
		blobs = append(blobs, j.layer)
	}
	return blobs
}
