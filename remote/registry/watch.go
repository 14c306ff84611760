package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"
)

// minProgress is how many bytes of a body have to come within the watch's limit. Who sends less is
// as good as silent: on a line that slow, nothing would be gained by holding on to one connection.
const minProgress = 4 << 10

// watch is the context of one HTTP exchange, ended when the server sends nothing, or next to
// nothing, for too long. The time runs while somebody waits for the server, not while a reader is
// busy with what came.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration

	// Of a body, between start and pause.
	began time.Time
	left  time.Duration // until minProgress bytes have to be here
	got   int           // bytes towards these
}

func newWatch(ctx context.Context, limit time.Duration) *watch {
	w := &watch{limit: limit, left: limit}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errStalled) })
	return w
}

// kick begins the time anew, for a request whose body is being sent.
func (w *watch) kick() { w.timer.Reset(w.limit) }

// start begins to wait for more of a body.
func (w *watch) start() {
	w.began = time.Now()
	w.timer.Reset(w.left)
}

// pause stops the time. n is how many bytes came since start.
func (w *watch) pause(n int) {
	w.timer.Stop()
	if w.got += n; w.got >= minProgress {
		w.got, w.left = 0, w.limit
		return
	}
	w.left = max(w.left-time.Since(w.began), 0)
}

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

// Reply is an answer whose body is watched, counted, and closed together with its exchange.
type Reply struct {
	*http.Response
	watch *watch
	Via   *url.URL // where it came from; the very pointer that the request was made with
	stats *counters
	sent  *Request
}

// drainable is how much of a body that nobody wants is read so that its connection can be used
// again.
const drainable = 64 << 10

// Close ends the exchange. What is left of the body is read first if that is little, or the
// connection would be lost.
func (r *Reply) Close() {
	if r.ContentLength >= 0 && r.ContentLength <= drainable && r.watch.ctx.Err() == nil {
		_, _ = io.CopyN(io.Discard, r, drainable) // only for the connection's sake
	}
	r.Abandon()
}

// Abandon ends the exchange at once.
func (r *Reply) Abandon() {
	_ = r.Body.Close() // a body being thrown away
	r.sent.ended(nil)
	r.watch.stop()
}

// Read reads the body under its watch. (Response.Body stays what the transport made.)
func (r *Reply) Read(p []byte) (int, error) {
	r.watch.start()
	n, err := r.Body.Read(p)
	r.watch.pause(n)
	r.stats.down.Add(uint64(n))
	r.sent.received(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.watch.why(err)
		r.sent.ended(err)
	}
	return n, err
}
