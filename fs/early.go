package fs

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/index"
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
	// earlyFar is how long the first answer of a registry takes, connection included, that is far away.
	earlyFar = 50 * time.Millisecond
	// limitedCopy is how many bytes of a copy are fetched before the index where there is a limit of bandwidth.
	limitedCopy = 8 << 20
	// windowsBytes is how many bytes of the windows are fetched for an image without a copy.
	windowsBytes = 1 << 20
	// earlyFor is how long they are asked for, and kept for nobody.
	earlyFor = 15 * time.Second
	// earlyStall is how long nothing may come of a request, which who waits for the bytes then asks himself: a copy may be shorter than
	// it is said to be.
	earlyStall = 2 * time.Second
)

// fetchEarly begins to fetch the copy of what a start of this image reads that the newest profile among the referrers, which took so long to
// come, has beside it; for an image without one the windows, which the first of its bytes need whichever they are.
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
	runs, ok := p.earlyCopy(refs, x, took)
	if !ok {
		runs = p.earlyWindows(x)
	}
	if len(runs) == 0 {
		return
	}
	p.t.log.DebugContext(p.ctx, "fetching before the index", "ref", p.name(), "requests", len(runs))
	p.t.goes(func(context.Context) {
		defer func() {
			for _, r := range runs {
				p.t.early.drop(r...)
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
	r := index.Range{Size: min(x.Windows.Size, windowsBytes)}
	left := p.left()
	left -= quickest(left, x.Trees.Size, p.roundTrip).requests(x.Trees.Size)
	size := quickest(max(left, 1), r.Size, p.roundTrip).even(r.Size)
	return runsOf(p.t.early.add(&feed{}, x.Windows, []index.Range{r}, size), func(int) int64 { return size })
}

// earlyCopy plans what the copy of a profile has of layers that are not here, and has these layers read it there. false: there is none that
// is usable.
func (p *pull) earlyCopy(refs []ocispec.Descriptor, x artifact.Index, took time.Duration) ([]run, bool) {
	d, _ := published.Newest(refs)
	c, ok, err := published.CopyOf(d)
	if err != nil {
		p.t.log.Warn("copy of what a start reads is not usable", "ref", p.name(), "artifact", d.Digest, "err", err)
	}
	if !ok || c.Trees != x.Trees.Digest {
		return nil, false
	}
	missing := p.missing()
	c.Frames = slices.DeleteFunc(c.Frames, func(f published.Frame) bool { return !slices.Contains(missing, f.Layer) })
	p.t.copies.add(foundCopy{p.image, proof.RepositoryOf(p.name()), x.Windows.Digest, &c})
	context.AfterFunc(p.ctx, func() { p.t.copies.remove(&c) })
	var ranges []index.Range
	for _, f := range c.Frames {
		if f.Off+f.Size > limitedCopy && p.t.o.Fetch.Bandwidth > 0 {
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
	return runsOf(p.t.early.add(&feed{}, c.Blob, ranges, min(earlyPiece, request(0))), request), true
}

// run is pieces that lie one behind the other: one request brings them.
type run []*piece

// size returns how many bytes the pieces have.
func (r run) size() (n int64) {
	for _, p := range r {
		n += p.size
	}
	return n
}

// runsOf makes runs of pieces of one blob, the nth of which has at most request(n) bytes.
func runsOf(pieces []*piece, request func(n int) int64) (runs []run) {
	for _, p := range pieces {
		if n := len(runs); n > 0 {
			r := runs[n-1]
			if last := r[len(r)-1]; last.off+last.size == p.off && r.size()+p.size <= request(n-1) {
				runs[n-1] = append(r, p)
				continue
			}
		}
		runs = append(runs, run{p})
	}
	return runs
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

// fetch brings the runs of one blob, in their order, so many at a time, and as there is room. If one does not come, no further one is asked
// for.
func (e *early) fetch(ctx context.Context, image *remote.Image, runs []run, requests int) {
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, requests)
	for i, r := range runs {
		slots <- struct{}{}
		if !e.begin(ctx, &r) {
			<-slots
			continue
		}
		running.Go(func() {
			defer func() { <-slots }()
			lost := r[r.fetch(ctx, image):]
			if len(lost) > 0 {
				for _, later := range runs[i+1:] {
					e.spareAll(later)
				}
			}
			for _, p := range lost {
				e.drop(p) // those who read it ask themselves
				p.advance(0)
			}
		})
	}
}

// fetch brings the pieces, and returns how many have come whole.
func (r run) fetch(ctx context.Context, image *remote.Image) (came int) {
	body, err := openImpatient(ctx, image.Blob(r[0].desc), r[0].off, r.size())
	if err != nil {
		return 0
	}
	defer body.Close()
	for _, p := range r {
		if p.fill(body) != nil {
			break
		}
		came++
	}
	return came
}

// impatient is a range of a blob, for who can do without: it ends when nothing comes for earlyStall.
type impatient struct {
	*watched
	body   io.Closer
	cancel context.CancelFunc
}

func openImpatient(ctx context.Context, blob *remote.Blob, off, n int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	opening := time.AfterFunc(earlyStall, cancel)
	body, err := blob.Range(ctx, off, n)
	opening.Stop()
	if err != nil {
		cancel()
		return nil, err
	}
	return &impatient{watch(body, earlyStall, cancel), body, cancel}, nil
}

// Close implements io.Closer.
func (b *impatient) Close() error {
	b.stop()
	b.cancel()
	return b.body.Close()
}
