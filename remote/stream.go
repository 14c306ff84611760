package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// stream is a range of a blob as it arrives.
type stream struct {
	ctx  context.Context
	blob *Blob
	rot  *rotation
	off  int64 // of the next byte
	left int64 // bytes to bring

	from *entrant // who sends cur
	cur  *reply   // nil: none open
	upTo int64    // offset where cur's bytes end
	got  int64    // bytes that cur has brought
	err  error    // sticky
}

// fluent is how many bytes a body must have brought for its end to be followed by the next attempt without a pause.
const fluent = 64 << 10

var errClosed = errors.New("read of a closed stream")

// Read implements io.Reader. It reads from the connection into p, without a copy between.
func (s *stream) Read(p []byte) (int, error) {
	for empty := 0; ; empty++ {
		if s.err != nil {
			return 0, s.err
		}
		if s.left == 0 {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if s.cur == nil {
			if err := s.connect(); err != nil {
				s.err = err
				return 0, err
			}
			empty = 0
		}
		n, err := watchedBody{s.cur}.Read(p[:min(int64(len(p)), s.left, s.upTo-s.off)])
		s.off += int64(n)
		s.left -= int64(n)
		s.got += int64(n)
		switch {
		case s.left == 0:
			s.finish()
			return n, nil
		case s.off == s.upTo: // the host sent less than asked for, and said so
			s.finish()
		case err != nil:
			s.broke(err)
		case n == 0 && empty == 100:
			s.broke(io.ErrNoProgress)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// finish ends a body that brought what it promised.
func (s *stream) finish() {
	s.rot.progress(s.from.host)
	s.cur.close()
	s.cur = nil
	for i := range s.rot.hosts {
		s.rot.hosts[i].tried = false
	}
}

// broke ends a body that did not.
func (s *stream) broke(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if s.got >= fluent {
		s.rot.progress(s.from.host)
	} else if s.got >= minProgress {
		s.rot.fails = 0
	}
	s.from.place.state.target.drop(s.cur.via)
	s.cur.abandon()
	s.cur = nil
	s.rot.failed(s.ctx, s.from, fmt.Errorf("%s: body broke off at byte %d: %w", s.from.name, s.off, err))
}

// Close implements io.Closer.
func (s *stream) Close() error {
	if s.cur != nil {
		s.cur.abandon()
		s.cur = nil
	}
	if s.err == nil {
		s.err = errClosed
	}
	return nil
}

// connect finds a host that sends the rest.
func (s *stream) connect() error {
	for {
		e, err := s.rot.pick(s.ctx)
		if err != nil {
			return err
		}
		r, err := s.ask(e)
		if err == nil {
			s.from, s.cur, s.got = e, r, 0
			e.place.state.serves(serving{e.host, s.off, s.upTo, e.place.image.client.served.Add(1)})
			if e.place != s.blob.places[0] {
				s.blob.places[0].state.granted()
			}
			return nil
		}
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) {
			e.place.state.setAbsent(e.host, time.Now())
		}
		s.rot.failed(s.ctx, e, err)
	}
}

// ask sends the request and leaves the answer's body at the wanted byte.
func (s *stream) ask(e *entrant) (*reply, error) {
	b, h := s.blob, e.host
	image, state := e.place.image, e.place.state
	x := exchanger{client: image.client, repo: image.repo.name, stats: &image.stats}
	c := call{
		method: http.MethodGet, rest: "blobs/" + b.desc.Digest.String(), target: &state.target,
		// Without this the transport may ask for gzip, and what it unpacks has other offsets.
		header: http.Header{"Accept-Encoding": {"identity"}},
	}
	// The whole blob is asked for without a range: such answers come from more caches.
	if s.off > 0 || s.left < b.desc.Size {
		c.header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.off, s.off+s.left-1))
	}
	if state.suspected(h, time.Now()) {
		c.header.Set("Cache-Control", "no-cache")
	}
	r, err := x.send(s.ctx, h, &c)
	if err != nil {
		return nil, err
	}
	skip, upTo, err := examine(r.Response, s.off, s.left, b.desc.Size)
	if err == nil && skip > 0 {
		h.ignoredRange(time.Now())
		var n int64
		if n, err = io.CopyN(io.Discard, watchedBody{r}, skip); err != nil {
			err = fmt.Errorf("body broke off after %d of %d bytes before the wanted ones: %w", n, skip, noEOF(err))
		}
	}
	if err != nil {
		state.target.drop(r.via)
		r.abandon()
		return nil, fmt.Errorf("%s %s%s: %w", c.method, r.via.Host, r.via.Path, err)
	}
	s.upTo = upTo
	return r, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// examine tells from an answer's head whether its body can be bytes off to off+n of a blob of the given size. skip is the number of
// bytes of the body before off, upTo the offset of the first byte that the body does not bring (at most off+n).
func examine(r *http.Response, off, n, size int64) (skip, upTo int64, err error) {
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return 0, 0, fmt.Errorf("%w: it is encoded (%s)", errNotBlob, printable(e, 40))
	}
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "text/html" || strings.HasPrefix(t, "multipart/") {
		return 0, 0, fmt.Errorf("%w: it is %s", errNotBlob, t)
	}
	switch r.StatusCode {
	case http.StatusOK:
		if r.ContentLength >= 0 && r.ContentLength != size {
			return 0, 0, fmt.Errorf("%w: it has %d bytes, the blob %d", errNotBlob, r.ContentLength, size)
		}
		return off, off + n, nil
	case http.StatusPartialContent:
		first, last, total, err := parseContentRange(r.Header.Get("Content-Range"))
		switch {
		case err != nil:
			return 0, 0, fmt.Errorf("%w: %w", errNotBlob, err)
		case first != off || last >= size:
			return 0, 0, fmt.Errorf("%w: asked for bytes %d-%d, got %d-%d", errNotBlob, off, off+n-1, first, last)
		case total >= 0 && total != size:
			return 0, 0, fmt.Errorf("%w: it has %d bytes in all, the blob %d", errNotBlob, total, size)
		case r.ContentLength >= 0 && r.ContentLength != last-first+1:
			return 0, 0, fmt.Errorf("%w: %d bytes sent as bytes %d-%d", errNotBlob, r.ContentLength, first, last)
		}
		return 0, min(last+1, off+n), nil
	}
	return 0, 0, fmt.Errorf("%w: status %d", errNotBlob, r.StatusCode)
}

// parseContentRange reads "bytes FIRST-LAST/TOTAL" (RFC 9110, 14.4). total is -1 for "*".
func parseContentRange(v string) (first, last, total int64, err error) {
	bad := func() (int64, int64, int64, error) {
		return 0, 0, 0, fmt.Errorf("its range is %q", printable(v, 60))
	}
	unit, rest, ok := strings.Cut(v, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	span, all, ok := strings.Cut(rest, "/")
	if !ok {
		return bad()
	}
	from, to, ok := strings.Cut(span, "-")
	if !ok {
		return bad()
	}
	f, err1 := strconv.ParseUint(from, 10, 62)
	l, err2 := strconv.ParseUint(to, 10, 62)
	if err1 != nil || err2 != nil || l < f {
		return bad()
	}
	if all == "*" {
		return int64(f), int64(l), -1, nil
	}
	t, err := strconv.ParseUint(all, 10, 62)
	if err != nil || l >= t {
		return bad()
	}
	return int64(f), int64(l), int64(t), nil
}
