package source

import (
	"context"
	"io"
	"time"

	"github.com/mica-snapshotter/mica/remote"
)

// stall is how long nothing may come of a request made in advance, which a reader who waits for the
// bytes then makes himself: a copy may be shorter than it is said to be.
const stall = 2 * time.Second

// impatient is what Impatient returns.
type impatient struct {
	*Watched
	body   io.Closer
	cancel context.CancelFunc
}

// Impatient returns n bytes of a blob from off on, for who can do without: they end when nothing
// comes for two seconds.
func Impatient(ctx context.Context, blob *remote.Blob, off, n int64) (io.ReadCloser, error) {
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
