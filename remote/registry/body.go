package registry

import (
	"errors"
	"io"
	"sync"
)

// Body is the body of a request. The transport may read it for some time after the request has
// failed, until it closes it. NewBody makes it.
type Body struct {
	from  io.Reader
	size  int64
	watch *watch
	err   error // of from; read it after wait

	once sync.Once
	done chan struct{} // nil: never handed to the transport
}

// NewBody returns a body of the size bytes that from brings.
func NewBody(from io.Reader, size int64) *Body {
	return &Body{from: io.LimitReader(from, size), size: size}
}

func (u *Body) begin(w *watch) {
	u.watch, u.done = w, make(chan struct{})
}

// Wait returns when the transport has let go of the body, with what kept it from being read.
func (u *Body) Wait() error {
	if u.done != nil {
		<-u.done
	}
	return u.err
}

// Read implements io.Reader, and takes each call as a sign that the server is alive.
func (u *Body) Read(p []byte) (int, error) {
	u.watch.kick()
	n, err := u.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		u.err = err
	}
	return n, err
}

// Close implements io.Closer.
func (u *Body) Close() error {
	u.once.Do(func() { close(u.done) })
	return nil
}
