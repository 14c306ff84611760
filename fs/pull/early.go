package pull

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/source"
	"github.com/mica-snapshotter/mica/index"
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
	// earlyPiece is how many bytes are kept until all of them have been read.
	earlyPiece = 1 << 20
	// earlyFar is how long the first answer of a registry takes, connection included, that is far
	// away.
	earlyFar = 50 * time.Millisecond
	// limitedCopy is how many bytes of a copy are fetched before the index where there is a limit
	// of bandwidth.
	limitedCopy = 8 << 20
	// windowsBytes is how many bytes of the windows are fetched for an image without a copy.
	windowsBytes = 1 << 20
	// earlyFor is how long they are asked for, and kept for nobody.
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
	requests := earlyRequests
	if took >= earlyFar {
		requests = earlyFarRequests
	}
	plan, ok := p.earlyCopy(refs, x, took)
	if !ok {
		plan = p.earlyWindows(x)
	}
	if len(plan) == 0 {
		return
	}
	p.all.o.Log.DebugContext(p.ctx, "fetching before the index",
		"ref", p.name(), "requests", len(plan))
	p.all.host.Go(func(context.Context) {
		defer p.all.o.Prefetch.Drop(plan)
		ctx, cancel := context.WithTimeout(p.ctx, earlyFor)
		defer cancel()
		p.all.o.Prefetch.Fetch(ctx, p.image, plan, requests)
		<-ctx.Done()
	})
}

// earlyWindows makes room for the first of an index's windows. It leaves the trees the requests
// that they need.
func (p *Pull) earlyWindows(x artifact.Index) source.Plan {
	r := index.Range{Size: min(x.Windows.Size, windowsBytes)}
	left := p.left()
	left -= quickest(left, x.Trees.Size, p.roundTrip).requests(x.Trees.Size)
	size := quickest(max(left, 1), r.Size, p.roundTrip).even(r.Size)
	return p.all.o.Prefetch.Plan(x.Windows, []index.Range{r}, size, func(int) int64 { return size })
}

// earlyCopy plans what the copy of a profile has of layers that are not here, and has these layers
// read it there. false: there is none that is usable.
func (p *Pull) earlyCopy(
	refs []ocispec.Descriptor, x artifact.Index, took time.Duration,
) (source.Plan, bool) {
	d, _ := published.Newest(refs)
	c, ok, err := published.CopyOf(d)
	if err != nil {
		p.all.o.Log.Warn("copy of what a start reads is not usable",
			"ref", p.name(), "artifact", d.Digest, "err", err)
	}
	if !ok || c.Trees != x.Trees.Digest {
		return nil, false
	}
	missing := p.missing()
	c.Frames = slices.DeleteFunc(c.Frames, func(f published.Frame) bool {
		return !slices.Contains(missing, f.Layer)
	})
	context.AfterFunc(p.ctx, p.all.o.Prefetch.AddCopy(source.FoundCopy{
		Image: p.image, Repository: proof.RepositoryOf(p.name()), Windows: x.Windows.Digest,
		Copy: &c,
	}))
	var ranges []index.Range
	for _, f := range c.Frames {
		if f.Off+f.Size > limitedCopy && p.all.o.Limited {
			break // all the rest is the scheduler's, which keeps to it
		}
		if n := len(ranges); n > 0 && ranges[n-1].Off+ranges[n-1].Size == f.Off {
			ranges[n-1].Size += f.Size
		} else {
			ranges = append(ranges, f.Range)
		}
	}
	request := func(n int) int64 { // bytes of the nth
		switch {
		case took < earlyFar:
			return earlyRequest
		case n < earlyFarRequests:
			return earlyFarRequest
		}
		return earlyFarLater
	}
	return p.all.o.Prefetch.Plan(c.Blob, ranges, min(earlyPiece, request(0)), request), true
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
