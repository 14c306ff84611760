package remote

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"
)

// watch is the context of one HTTP exchange, ended when the server sends nothing for too long. The time runs while somebody waits
// for the server, not while a reader is busy with what came.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func newWatch(ctx context.Context, limit time.Duration) *watch {
	w := &watch{limit: limit}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errStalled) })
	return w
}

func (w *watch) start() { w.timer.Reset(w.limit) }
func (w *watch) pause() { w.timer.Stop() }

// stop releases the exchange. Its context must not be needed any more.
func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// why turns the error of an exchange into its cause, where the watch ended it.
func (w *watch) why(err error) error {
	if err != nil && w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return bare(err)
}

// reply is an answer whose body is watched, counted, and closed together with its exchange.
type reply struct {
	*http.Response
	watch *watch
	via   *url.URL // where it came from; the very pointer that the request was made with
	stats *counters
}

// drainable is how much of a body that nobody wants is read so that its connection can be used again.
const drainable = 64 << 10

// close ends the exchange. What is left of the body is read first if that is little, or the connection would be lost.
func (r *reply) close() {
	if r.ContentLength >= 0 && r.ContentLength <= drainable && r.watch.ctx.Err() == nil {
		_, _ = io.CopyN(io.Discard, watchedBody{r}, drainable) // only for the connection's sake
	}
	r.abandon()
}

// abandon ends the exchange at once.
func (r *reply) abandon() {
	_ = r.Body.Close() // a body being thrown away
	r.watch.stop()
}

// watchedBody reads a reply's body under its watch. (A type of its own so that Response.Body stays what the transport made.)
type watchedBody struct{ r *reply }

func (b watchedBody) Read(p []byte) (int, error) {
	b.r.watch.start()
	n, err := b.r.Body.Read(p)
	b.r.watch.pause()
	b.r.stats.received(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.r.watch.why(err)
	}
	return n, err
}
