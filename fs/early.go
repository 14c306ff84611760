package fs

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/layer"
	"github.com/mica-snapshotter/mica/fs/profile/published"
	"github.com/mica-snapshotter/mica/index/artifact"
	"github.com/mica-snapshotter/mica/remote"
)

const (
	// earlyBytes is how many bytes are kept for layers whose index is still on its way, of all pulls together.
	earlyBytes = 2 * published.MaxEarly
	// Requests at a time, and bytes of each. Where a round trip is long there are more of them, as a connection begins slowly;
	// where it is short, two keep the line busy, and more than that only the cores, when a pull ends and a container is created.
	earlyRequests, earlyPiece       = 2, 4 << 20
	earlyFarRequests, earlyFarPiece = 16, 256 << 10
	// earlyFrom is how long the first answer of a registry takes, connection included, from which on what a profile names is fetched
	// before the index range by range: requests to nearer ones cost more time, in which the index is unpacked and mounted, than they save.
	earlyFrom = 18 * time.Millisecond
	// earlyFar is how long the first answer of a registry takes, connection included, that is far away.
	earlyFar  = 50 * time.Millisecond
	earlyStep = 64 << 10 // after so many bytes readers are told
	// windowsBytes is how many bytes of the windows are fetched for an image without a profile.
	windowsBytes = 1 << 20
	// earlyFor is how long they are asked for, and kept for nobody.
	earlyFor = 15 * time.Second
	// earlyStall is how long nothing may come of a request, which who waits for the bytes then asks himself: a copy may be shorter than
	// it is said to be.
	earlyStall = 2 * time.Second
)

// early is ranges of blobs that are fetched before there is an index: what a profile says that a start reads first. They come from
// the blobs, or by few requests from a copy that lies beside the profile. A source takes from it what it has; who reads verifies that as
// all else.
type early struct {
	mu     sync.Mutex
	taken  int64
	pieces map[digest.Digest][]*piece
}

// piece is a range of a blob, on its way.
type piece struct {
	desc ocispec.Descriptor // the blob
	off  int64
	buf  []byte

	mu   sync.Mutex
	have int           // bytes that are here
	read int           // bytes that were taken
	over bool          // no more will come
	more chan struct{} // closed, and replaced, when have or over changes
}

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
	requests, size := earlyRequests, int64(earlyPiece)
	if took >= earlyFar {
		requests, size = earlyFarRequests, earlyFarPiece
	}
	var runs []run
	if d, ok := published.Newest(refs); !ok {
		runs = p.earlyWindows(x)
	} else {
		runs = p.earlyRuns(d, append(p.missing(), x.Windows.Digest), size, took < earlyFrom)
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
	return alone(p.t.early.add([]published.BlobRange{r}, quickest(max(left, 1), r.Size, p.roundTrip).even(r.Size)))
}

// earlyRuns makes room for the ranges of these blobs that an artifact names, in requests of at most size bytes. Near registries are asked
// for them only where there is a copy.
func (p *pull) earlyRuns(d ocispec.Descriptor, blobs []digest.Digest, size int64, near bool) []run {
	early, err := published.EarlyRanges(d)
	if err != nil {
		p.t.log.Warn("ranges that are to be fetched first are not usable", "ref", p.name(), "artifact", d.Digest, "err", err)
		return nil
	}
	wanted := func(r published.BlobRange) bool { return slices.Contains(blobs, r.Blob) }
	if early.Copy.Size == 0 && near {
		return nil
	}
	if early.Copy.Size == 0 {
		ranges := slices.DeleteFunc(early.Ranges, func(r published.BlobRange) bool { return !wanted(r) })
		return alone(p.t.early.add(published.Join(ranges, size), size))
	}
	var runs []run
	at := int64(0)
	for _, r := range early.Ranges {
		if wanted(r) {
			for _, piece := range p.t.early.add([]published.BlobRange{r}, size) {
				runs = appendRun(runs, run{early.Copy, at + piece.off - r.Off, int64(len(piece.buf)), piece.list()}, size)
			}
		}
		at += r.Size
	}
	return runs
}

// run is pieces that one request brings: they lie one behind the other, in their own blob or in a copy of the early ranges.
type run struct {
	desc      ocispec.Descriptor // the blob
	off, size int64
	pieces    []*piece
}

// alone has each piece fetched from its own blob.
func alone(pieces []*piece) []run {
	runs := make([]run, len(pieces))
	for i, p := range pieces {
		runs[i] = run{p.desc, p.off, int64(len(p.buf)), p.list()}
	}
	return runs
}

// appendRun appends a run, to the last one if it goes on there and has no more than most bytes then.
func appendRun(runs []run, r run, most int64) []run {
	if n := len(runs); n > 0 {
		if last := &runs[n-1]; last.off+last.size == r.off && last.size+r.size <= most {
			last.size += r.size
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

// add makes room for ranges, in pieces of at most size bytes, as far as there is some and they are not here.
func (e *early) add(ranges []published.BlobRange, size int64) (pieces []*piece) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pieces == nil {
		e.pieces = map[digest.Digest][]*piece{}
	}
	for _, r := range ranges {
		blob := ocispec.Descriptor{Digest: r.Blob, Size: r.BlobSize}
		for off, end := r.Off, r.Off+r.Size; off < end; {
			if here := e.findLocked(blob, off); here != nil {
				off = here.off + int64(len(here.buf))
				continue
			}
			n := min(size, end-off)
			if e.taken+n > earlyBytes {
				return pieces
			}
			p := &piece{desc: blob, off: off, buf: make([]byte, n), more: make(chan struct{})}
			e.taken += n
			e.pieces[r.Blob] = append(e.pieces[r.Blob], p)
			pieces = append(pieces, p)
			off += n
		}
	}
	return pieces
}

// fetch brings the runs, in their order, so many at a time.
func (e *early) fetch(ctx context.Context, image *remote.Image, runs []run, requests int) {
	var g errgroup.Group
	g.SetLimit(requests)
	for _, r := range runs {
		g.Go(func() error {
			for _, p := range r.pieces[r.fetch(ctx, image):] {
				e.drop(p) // those who read it ask themselves
				p.advance(0)
			}
			return nil
		})
	}
	_ = g.Wait() // of nil
}

// find returns the piece that holds a byte of a blob; nil: there is none. Those of a profile that gives the blob another size do
// not count: they may never come.
func (e *early) find(blob ocispec.Descriptor, off int64) *piece {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.findLocked(blob, off)
}

func (e *early) findLocked(blob ocispec.Descriptor, off int64) *piece {
	for _, p := range e.pieces[blob.Digest] {
		if p.desc.Size == blob.Size && p.off <= off && off < p.off+int64(len(p.buf)) {
			return p
		}
	}
	return nil
}

// drop forgets pieces. Who reads one goes on.
func (e *early) drop(pieces ...*piece) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range pieces {
		list := e.pieces[p.desc.Digest]
		i := slices.Index(list, p)
		if i < 0 {
			continue
		}
		e.taken -= int64(len(p.buf))
		if list = slices.Delete(list, i, i+1); len(list) == 0 {
			delete(e.pieces, p.desc.Digest)
		} else {
			e.pieces[p.desc.Digest] = list
		}
	}
}

// suspect drops what holds any of the n bytes from off on, which were wrong.
func (e *early) suspect(blob digest.Digest, off, n int64) {
	e.mu.Lock()
	list := slices.Clone(e.pieces[blob])
	e.mu.Unlock()
	for _, p := range list {
		if p.off < off+n && off < p.off+int64(len(p.buf)) {
			e.drop(p)
		}
	}
}

// fetch brings the pieces, and returns how many have come whole.
func (r *run) fetch(ctx context.Context, image *remote.Image) (came int) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opening := time.AfterFunc(earlyStall, cancel)
	body, err := image.Blob(r.desc).Range(ctx, r.off, r.size)
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

func (p *piece) list() []*piece { return []*piece{p} }

// fill reads the piece from body.
func (p *piece) fill(body io.Reader) error {
	for b := p.buf; len(b) > 0; {
		n, err := io.ReadFull(body, b[:min(earlyStep, len(b))])
		if err != nil {
			return err
		}
		b = b[n:]
		p.advance(n)
	}
	return nil
}

// advance notes that n more bytes are here; 0: no more will come.
func (p *piece) advance(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have += n
	p.over = n == 0
	close(p.more)
	p.more = make(chan struct{})
}

// take waits for bytes from off on and copies them. 0 says that none will come; an error is of ctx. last says that all
// of the piece have been taken, by somebody.
func (p *piece) take(ctx context.Context, b []byte, off int64) (n int, last bool, err error) {
	for {
		p.mu.Lock()
		if n = copy(b, p.buf[min(off-p.off, int64(p.have)):p.have]); n > 0 || p.over {
			p.read += n
			last = p.read >= len(p.buf)
			p.mu.Unlock()
			return n, last, nil
		}
		more := p.more
		p.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return 0, false, context.Cause(ctx)
		}
	}
}

// earlyBody is a range of a blob of which the beginning, at least, was asked for before.
type earlyBody struct {
	s        *source
	ctx      context.Context
	off, end int64         // in the blob
	rest     io.ReadCloser // what was not; nil: not reached
}

var _ layer.Held = (*earlyBody)(nil)

// Held implements layer.Held.
func (b *earlyBody) Held() {}

// Read implements io.Reader.
func (b *earlyBody) Read(p []byte) (int, error) {
	if b.off == b.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.end-b.off)]
	early := b.s.origins.early
	for b.rest == nil && len(p) > 0 {
		piece := early.find(b.s.desc, b.off)
		if piece == nil {
			rest, err := b.s.ask(b.ctx, b.off, b.end-b.off)
			if err != nil {
				return 0, err
			}
			b.rest = rest
			break
		}
		n, last, err := piece.take(b.ctx, p, b.off)
		if last {
			early.drop(piece)
		}
		if n > 0 || err != nil {
			b.off += int64(n)
			return n, err
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.rest.Read(p)
	b.off += int64(n)
	return n, err
}

// Close implements io.Closer.
func (b *earlyBody) Close() error {
	if b.rest != nil {
		return b.rest.Close()
	}
	return nil
}
