package registry

import (
	"bytes"
	"net/http"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fault is what happens to one request. The zero Fault leaves it alone; Hold and
// Delay go with any other, of the others one is done.
type Fault struct {
	Hold       <-chan struct{} // waited for before anything else; then the rule is asked again
	Delay      time.Duration   // before the rest
	Status     int             // answered in place of the registry, 429 for instance
	RetryAfter string          // header that goes with Status
	Location   string          // the same: where a redirect goes
	Body       string          // the same: an image index, instead of the status' name
	Link       string          // header that goes with the registry's answer
	Page       bool            // 200 with an HTML page, as a proxy's log-in form
	Whole      bool            // 200 with the whole blob, though a range was asked for
	WrongRange bool            // 206 with a Content-Range and bytes that nobody asked for
	Reset      bool            // TCP reset after Cut bytes of the body
	Truncate   bool            // connection closed in order after Cut bytes, short of Content-Length
	Cut        int64
	Flip       bool  // right in all but the bytes: some bits of the body are others
	Rate       int64 // bytes of the body per second
}

// Rule chooses the fault for a request. n counts the requests since the rule
// was set, from 0. Rules run in parallel.
type Rule func(r *http.Request, n int64) Fault

const loginPage = "<!DOCTYPE html><html><head><title>Log in</title></head><body>Please log in to the network.</body></html>\n"

// inject answers r as the fault says, by means of next.
func inject(w http.ResponseWriter, r *http.Request, f Fault, next http.Handler) {
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			return
		}
	}
	for name, value := range map[string]string{
		"Retry-After": f.RetryAfter, "Location": f.Location, "Link": f.Link,
	} {
		if value != "" {
			w.Header().Set(name, value)
		}
	}
	switch {
	case f.Body != "":
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		w.WriteHeader(f.Status)
		_, _ = w.Write([]byte(f.Body)) // to a client that may have gone
	case f.Status != 0:
		http.Error(w, http.StatusText(f.Status), f.Status)
	case f.Page:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(loginPage)) // to a client that may have gone
	case f.Whole:
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	case f.WrongRange && r.Header.Get("Range") != "":
		r.Header.Set("Range", "bytes=1-4096")
		next.ServeHTTP(w, r)
	case f.Reset || f.Truncate:
		next.ServeHTTP(&cutter{ResponseWriter: w, left: f.Cut, reset: f.Reset}, r)
	case f.Flip:
		next.ServeHTTP(&changer{ResponseWriter: w, change: flip}, r)
	case f.Rate > 0:
		next.ServeHTTP(&changer{ResponseWriter: w, change: func(p []byte) []byte {
			time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(f.Rate))
			return p
		}}, r)
	default:
		next.ServeHTTP(w, r)
	}
}

// changer passes the body on in small pieces, each as change returns it.
type changer struct {
	http.ResponseWriter
	change func([]byte) []byte
}

func (c *changer) Write(p []byte) (int, error) {
	var n int
	for piece := range slices.Chunk(p, 4<<10) {
		m, err := c.ResponseWriter.Write(c.change(piece))
		n += m
		if err == nil {
			err = c.FlushError()
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// FlushError is what a reverse proxy calls after writing.
func (c *changer) FlushError() error { return http.NewResponseController(c.ResponseWriter).Flush() }

// flip returns a copy of p with one bit changed.
func flip(p []byte) []byte {
	p = bytes.Clone(p)
	p[len(p)/2] ^= 1
	return p
}

// cutter ends the connection when left bytes of the body have been written.
type cutter struct {
	http.ResponseWriter
	left  int64
	reset bool
	cut   bool
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.cut {
		return 0, http.ErrAbortHandler
	}
	if int64(len(p)) <= c.left {
		c.left -= int64(len(p))
		return c.ResponseWriter.Write(p)
	}
	n, err := c.ResponseWriter.Write(p[:c.left])
	c.left -= int64(n)
	if err != nil {
		return n, err
	}
	ctl := http.NewResponseController(c.ResponseWriter)
	if err := ctl.Flush(); err != nil {
		return n, err
	}
	conn, _, err := ctl.Hijack()
	if err != nil {
		return n, err
	}
	c.cut = true
	if tcp, ok := conn.(interface{ SetLinger(int) error }); ok && c.reset {
		_ = tcp.SetLinger(0) // Close sends a reset
	}
	_ = conn.Close()
	return n, http.ErrAbortHandler
}

// FlushError is what a reverse proxy calls after writing; the connection may be
// gone by then.
func (c *cutter) FlushError() error {
	if c.cut {
		return http.ErrAbortHandler
	}
	return http.NewResponseController(c.ResponseWriter).Flush()
}
