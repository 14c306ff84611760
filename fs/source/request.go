package source

import (
	"context"
	"io"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mica-snapshotter/mica/index"
	"github.com/mica-snapshotter/mica/remote"
)

// stall is how long nothing may come of a request made in advance, which a reader who waits for the
// bytes then makes himself: a copy may be shorter than it is said to be.
const stall = 2 * time.Second

// run is pieces that lie one behind the other: one request brings them.
type run []*piece

// size returns how many bytes the pieces have.
func (r run) size() (n int64) {
	for _, p := range r {
		n += p.size
	}
	return n
}

// Plan is ranges of a blob that Fetch brings, in its order.
type Plan []run

// Plan plans ranges of a blob as far as they are not planned, or here: in pieces of at most size
// bytes, which are kept until all of them have been read, by requests of which the nth has at most
// request(n) bytes. Pair it with Drop.
func (e *Prefetch) Plan(
	blob ocispec.Descriptor, ranges []index.Range, size int64, request func(n int) int64,
) Plan {
	return runsOf(e.add(&feed{}, blob, ranges, size), request)
}

// Drop forgets what is left of a plan.
func (e *Prefetch) Drop(plan Plan) {
	for _, r := range plan {
		e.drop(r...)
	}
}

// Unread returns how many bytes are kept for readers, and those on their way.
func (e *Prefetch) Unread() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.taken
}

// runsOf makes runs of pieces of one blob, the nth of which has at most request(n) bytes.
func runsOf(pieces []*piece, request func(n int) int64) (runs Plan) {
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

// Fetch brings what is planned of one blob, so many requests at a time, and as there is room. If
// one does not come, no further one is made.
func (e *Prefetch) Fetch(ctx context.Context, image *remote.Image, runs Plan, requests int) {
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

// impatient is a range of a blob, for who can do without: it ends when nothing comes for stall.
type impatient struct {
	*Watched
	body   io.Closer
	cancel context.CancelFunc
}

func openImpatient(ctx context.Context, blob *remote.Blob, off, n int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	opening := time.AfterFunc(stall, cancel)
	body, err := blob.Range(ctx, off, n)
	opening.Stop()
	if err != nil {
		cancel()
		return nil, err
	}
	return &impatient{Watch(body, stall, cancel), body, cancel}, nil
}

// Close implements io.Closer.
func (b *impatient) Close() error {
	b.Stop()
	b.cancel()
	return b.body.Close()
}

// Watched is a reader that tells when nothing has come for a while. Watch makes it.
type Watched struct {
	r     io.Reader
	limit time.Duration
	timer *time.Timer
}

// Watch returns r, which calls stalled when nothing has come for as long as limit. Pair it with
// Stop.
func Watch(r io.Reader, limit time.Duration, stalled func()) *Watched {
	return &Watched{r: r, limit: limit, timer: time.AfterFunc(limit, stalled)}
}

// Read implements io.Reader. Time between two calls, when nobody wants bytes, does not count.
func (w *Watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.r.Read(p)
	w.timer.Stop()
	return n, err
}

// Stop ends the watch.
func (w *Watched) Stop() { w.timer.Stop() }
