package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// stream is a range of a blob as it arrives.
type stream struct {
	ctx  context.Context
	blob *Blob
	rot  *rotation
	off  int64 // of the next byte
	left int64 // bytes to bring
	way  way

	spooled *spoolReader // from where the rest is read; nil: from a host
	from    *candidate   // who sends cur
	cur     *reply       // nil: none open
	upTo    int64        // offset where cur's bytes end
	got     int64        // bytes that cur has brought
	err     error        // sticky

	// whole is the answer of a host that ignores ranges, kept while others are asked: the spool may
	// begin with it.
	whole  *reply
	sender *candidate
}

// way is how a stream's bytes are come by.
type way uint8

const (
	ranged  way = iota // hosts are asked for the range, but for those that are known to ignore it
	probing            // those as well
	spooled            // they are read from the blob's spool
	whole              // what a host that ignores ranges sends before the range is read over
)

// fluent is how many bytes a body must have brought for its end to be followed by the next attempt
// without a pause.
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
		if s.cur == nil && s.spooled == nil {
			if err := s.connect(); err != nil {
				s.err = err
				return 0, err
			}
			empty = 0
		}
		if s.spooled != nil {
			n, err := s.spooled.Read(p)
			s.off += int64(n)
			s.left -= int64(n)
			if err = s.leaveSpool(err); n > 0 || err != nil {
				s.err = err
				return n, err
			}
			continue
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

// leaveSpool looks at why a spool brings no more, and returns an error where nobody else will.
func (s *stream) leaveSpool(err error) error {
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return nil
	case s.ctx.Err() == nil && errors.Is(err, errNoRoom):
		s.way = whole
	case s.ctx.Err() == nil && errors.Is(err, errDropped):
		s.way = ranged
	default:
		return fmt.Errorf("%w (%s)", err, s.rot.what)
	}
	_ = s.spooled.Close() // of memory
	s.spooled, s.rot.hosts = nil, nil
	return nil
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
	s.from.location.state.target.forgetURL(s.cur.via)
	s.cur.abandon()
	s.cur = nil
	s.rot.failed(s.ctx, s.from,
		fmt.Errorf("%s: body broke off at byte %d: %w", s.from.name, s.off, err))
}

// Close implements io.Closer.
func (s *stream) Close() error {
	if s.cur != nil {
		s.cur.abandon()
		s.cur = nil
	}
	if s.spooled != nil {
		_ = s.spooled.Close() // of memory
	}
	if s.err == nil {
		s.err = errClosed
	}
	return nil
}

// connect finds a host that sends the rest, or the spool that has it.
func (s *stream) connect() error {
	if s.way == spooled {
		return s.spool()
	}
	for {
		if len(s.rot.hosts) == 0 {
			hosts, err := s.blob.hosts(s.ctx, s.way)
			if err != nil {
				return fmt.Errorf("%w (%s)", err, s.rot.what)
			}
			s.rot.hosts = hosts
		}
		e, err := s.rot.pick(s.ctx)
		if errors.Is(err, errNoRanges) {
			return s.spool()
		}
		if err != nil {
			s.dropWhole()
			return err
		}
		r, err := s.ask(e)
		if err == nil {
			s.dropWhole()
			s.from, s.cur, s.got = e, r, 0
			e.location.state.serves(serving{e.host, s.off, s.upTo, e.location.image.client.served.Add(1)})
			if e.location != s.blob.locations[0] {
				s.blob.locations[0].state.granted()
			}
			return nil
		}
		if errors.Is(err, errIgnored) {
			e.whole = true
			continue
		}
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) {
			e.location.state.setAbsent(e.host, time.Now())
		}
		s.rot.failed(s.ctx, e, err)
	}
}

// keepWhole keeps the first answer with the whole blob. Nothing of its body is read until it is
// used.
func (s *stream) keepWhole(e *candidate, r *reply) {
	if s.whole != nil {
		r.abandon()
		return
	}
	s.whole, s.sender = r, e
}

// dropWhole ends what keepWhole has kept.
func (s *stream) dropWhole() {
	if s.whole != nil {
		s.whole.abandon()
		s.whole = nil
	}
}

// adopt has a stream that begins with the blob's first byte begin with the answer that another
// keeps.
func (s *stream) adopt(from *stream) {
	if from.whole == nil || s.off > 0 {
		return
	}
	e := *from.sender
	e.whole = false
	s.from, s.cur, s.upTo = &e, from.whole, s.left
	s.cur.watch.moveTo(s.ctx)
	from.whole = nil
	seq := e.location.image.client.served.Add(1)
	e.location.state.serves(serving{e.host, s.off, s.upTo, seq})
}

// spool has the rest come from the blob's spool; where there cannot be one, as of a whole blob.
func (s *stream) spool() error {
	defer s.dropWhole()
	r, err := s.blob.locations[0].image.client.spools.open(s)
	if errors.Is(err, errNoRoom) {
		s.way, s.rot.hosts = whole, nil
		return s.connect()
	}
	if err != nil {
		return fmt.Errorf("%w (%s)", err, s.rot.what)
	}
	s.spooled = r
	return nil
}

// ask sends the request and leaves the answer's body at the wanted byte.
func (s *stream) ask(e *candidate) (*reply, error) {
	b, h := s.blob, e.host
	image, state := e.location.image, e.location.state
	x := exchanger{client: image.client, repo: image.repo.name, stats: &image.stats}
	c := call{
		method: http.MethodGet, rest: "blobs/" + b.desc.Digest.String(),
		target: &state.target, proved: true,
		// Without this the transport may ask for gzip, and what it unpacks has other offsets.
		header: http.Header{"Accept-Encoding": {"identity"}},
	}
	// The whole blob is asked for without a range: such answers come from more caches.
	partial := s.off > 0 || s.left < b.desc.Size
	if partial && s.way != whole && h.ignoresRanges(time.Now()) && !state.honours(h) {
		release, err := state.probe(s.ctx)
		if err != nil {
			return nil, err
		}
		defer release()
		if s.way == ranged && state.ignores(h, time.Now()) {
			return nil, errIgnored // another reader has found out
		}
	}
	if partial {
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
	switch {
	case err == nil && partial && r.StatusCode == http.StatusPartialContent:
		state.honoured(h)
	case err == nil && partial:
		h.ignoredRange(time.Now())
		state.ignored(h, time.Now())
		if s.way != whole {
			s.keepWhole(e, r)
			return nil, errIgnored
		}
	}
	if err == nil && skip > 0 {
		var n int64
		if n, err = io.CopyN(io.Discard, watchedBody{r}, skip); err != nil {
			err = fmt.Errorf("body broke off after %d of %d bytes before the wanted ones: %w", n,
				skip, noEOF(err))
		}
	}
	if err != nil {
		state.target.forgetURL(r.via)
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
