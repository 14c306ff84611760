package fs

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/remote"
)

const (
	// Requests at a time, and bytes of each. Where a round trip is long there are more of them, as a connection begins slowly;
	// where it is short, two keep the line busy, and more than that only the cores, when a pull ends and a container is created.
	earlyRequests, earlyRequest       = 2, 4 << 20
	earlyFarRequests, earlyFarRequest = 16, 256 << 10
	// earlyFarLater is how many bytes requests have when each connection has had one.
	earlyFarLater = 1 << 20
	// earlyPiece is how many bytes are kept until all of them have been read.
	earlyPiece = 1 << 20
	// earlyFrom is how long the first answer of a registry takes, connection included, from which on what a profile names is fetched
	// before the index range by range: requests to nearer ones cost more time, in which the index is unpacked and mounted, than they save.
	earlyFrom = 18 * time.Millisecond
	// earlyFar is how long the first answer of a registry takes, connection included, that is far away.
	earlyFar = 50 * time.Millisecond
	// windowsBytes is how many bytes of the windows are fetched for an image without a profile.
	windowsBytes = 1 << 20
	// earlyFor is how long they are asked for, and kept for nobody.
	earlyFor = 15 * time.Second
	// earlyStall is how long nothing may come of a request, which who waits for the bytes then asks himself: a copy may be shorter than
	// it is said to be.
	earlyStall = 2 * time.Second
)

// fetchEarly begins to fetch what the newest profile among the referrers, which took so long to come, says that a start of this image
// reads first; for an image without a profile the windows, which the first of its bytes need whichever they are.
func (p *pull) fetchEarly(refs, indexes []ocispec.Descriptor, took time.Duration) {
	if len(indexes) == 0 || p.t.o.Fetch.Fill == fetch.None {
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
	var runs []run
	if d, ok := published.Newest(refs); !ok {
		runs = p.earlyWindows(x)
	} else {
		runs = p.earlyRuns(d, append(p.missing(), x.Windows.Digest), took)
	}
	if len(runs) == 0 {
		return
	}
	p.t.log.DebugContext(p.ctx, "fetching before the index", "ref", p.name(), "requests", len(runs))
	p.t.goes(func(context.Context) {
		defer func() {
			for _, r := range runs {
				p.t.early.drop(r.pieces...)
			}
		}()
		ctx, cancel := context.WithTimeout(p.ctx, earlyFor)
		defer cancel()
		p.t.early.fetch(ctx, p.image, runs, requests)
		<-ctx.Done()
	})
}

// earlyWindows makes room for the first of an index's windows. It leaves the trees the requests that they need.
func (p *pull) earlyWindows(x artifact.Index) []run {
	r := published.BlobRange{Blob: x.Windows.Digest, BlobSize: x.Windows.Size, Size: min(x.Windows.Size, windowsBytes)}
	left := p.left()
	left -= quickest(left, x.Trees.Size, p.roundTrip).requests(x.Trees.Size)
	return alone(p.t.early.add(&feed{}, []published.BlobRange{r}, quickest(max(left, 1), r.Size, p.roundTrip).even(r.Size)))
}

// earlyRuns plans the ranges of these blobs that an artifact names. A registry whose first answer took so long that it is near is asked
// for them only where there is a copy.
func (p *pull) earlyRuns(d ocispec.Descriptor, blobs []digest.Digest, took time.Duration) []run {
	early, err := published.EarlyRanges(d)
	if err != nil {
		p.t.log.Warn("ranges that are to be fetched first are not usable", "ref", p.name(), "artifact", d.Digest, "err", err)
		return nil
	}
	wanted := func(r published.BlobRange) bool { return slices.Contains(blobs, r.Blob) }
	request := func(n int) int64 { // bytes of the request behind n
		switch {
		case took < earlyFar:
			return earlyRequest
		case n < earlyFarRequests:
			return earlyFarRequest
		}
		return earlyFarLater
	}
	f := &feed{}
	if early.Copy.Size == 0 {
		if took < earlyFrom {
			return nil
		}
		ranges := slices.DeleteFunc(early.Ranges, func(r published.BlobRange) bool { return !wanted(r) })
		return alone(p.t.early.add(f, published.Join(ranges, request(0)), request(0)))
	}
	var runs []run
	at := int64(0) // of the range in the copy
	for _, r := range early.Ranges {
		if at+r.Size > published.MaxEarly && p.t.o.Fetch.Bandwidth > 0 {
			break // all the rest is the scheduler's, which keeps to it
		}
		if wanted(r) {
			for _, pc := range p.t.early.add(f, []published.BlobRange{r}, min(earlyPiece, request(0))) {
				runs = appendRun(runs, run{desc: early.Copy, off: at + pc.off - r.Off, pieces: []*piece{pc}}, request(len(runs)-1))
			}
		}
		at += r.Size
	}
	return runs
}

// run is pieces that one request brings: they lie one behind the other, in their own blob or in a copy of the early ranges.
type run struct {
	desc   ocispec.Descriptor // the blob
	off    int64
	pieces []*piece
}

// size returns how many bytes the pieces have.
func (r *run) size() (n int64) {
	for _, p := range r.pieces {
		n += p.size
	}
	return n
}

// alone has each piece fetched from its own blob.
func alone(pieces []*piece) []run {
	runs := make([]run, len(pieces))
	for i, p := range pieces {
		runs[i] = run{p.desc, p.off, []*piece{p}}
	}
	return runs
}

// appendRun appends a run, to the last one if it goes on there and has no more than most bytes then.
func appendRun(runs []run, r run, most int64) []run {
	if n := len(runs); n > 0 {
		if last := &runs[n-1]; last.off+last.size() == r.off && last.size()+r.size() <= most {
			last.pieces = append(last.pieces, r.pieces...)
			return runs
		}
	}
	return append(runs, r)
}

// missing returns the layers of the image that are not here.
func (p *pull) missing() (blobs []digest.Digest) {
	p.t.mu.Lock()
	jobs := slices.Clone(p.jobs)
	p.t.mu.Unlock()
	for _, j := range jobs {
		if l, err := p.t.store.Layer(j.layer); err == nil {
			l.Close()
			continue
		}
		blobs = append(blobs, j.layer)
	}
	return blobs
}

// fetch brings the runs, in their order, so many at a time, and as there is room. If one of a copy does not come, no further one is asked
// for.
func (e *early) fetch(ctx context.Context, image *remote.Image, runs []run, requests int) {
	var g errgroup.Group
	g.SetLimit(requests)
	for i, r := range runs {
		g.Go(func() error {
			if !e.begin(ctx, &r) {
				return nil
			}
			lost := r.pieces[r.fetch(ctx, image):]
			if len(lost) > 0 && r.desc.Digest != lost[0].desc.Digest {
				for _, later := range runs[i+1:] {
					if later.desc.Digest == r.desc.Digest {
						e.spareAll(later.pieces)
					}
				}
			}
			for _, p := range lost {
				e.drop(p) // those who read it ask themselves
				p.advance(0)
			}
			return nil
		})
	}
	_ = g.Wait() // of nil
}

// fetch brings the pieces, and returns how many have come whole.
func (r *run) fetch(ctx context.Context, image *remote.Image) (came int) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opening := time.AfterFunc(earlyStall, cancel)
	body, err := image.Blob(r.desc).Range(ctx, r.off, r.size())
	opening.Stop()
	if err != nil {
		return 0
	}
	defer body.Close()
	in := watch(body, earlyStall, cancel)
	defer in.stop()
	for _, p := range r.pieces {
		if p.fill(in) != nil {
			break
		}
		came++
	}
	return came
}
