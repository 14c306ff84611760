package ranges

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mica-snapshotter/mica/remote/registry"
)

// stream is a range of a blob as it arrives.
type stream struct {
	ctx  context.Context
	blob *Blob
	rot  *registry.Rotation
	off  int64 // of the next byte
	left int64 // bytes to bring
	way  way

	spooled *spoolReader        // from where the rest is read; nil: from a host
	from    *registry.Candidate // who sends cur
	cur     *registry.Reply     // nil: none open
	upTo    int64               // offset where cur's bytes end
	got     int64               // bytes that cur has brought
	err     error               // sticky
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

// some is how many bytes have it be followed by the shortest pause.
const some = 4 << 10

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
		n, err := s.cur.Read(p[:min(int64(len(p)), s.left, s.upTo-s.off)])
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
	case s.ctx.Err() == nil && errors.Is(err, errDiscarded):
		s.way = ranged
	default:
		return fmt.Errorf("%w (%s)", err, s.rot.What)
	}
	_ = s.spooled.Close() // of memory
	s.spooled, s.rot.Hosts = nil, nil
	return nil
}

// finish ends a body that brought what it promised.
func (s *stream) finish() {
	s.rot.Progress(s.from.Host)
	s.cur.Close()
	s.cur = nil
	s.rot.Untried()
}

// broke ends a body that did not.
func (s *stream) broke(err error) {
	err = registry.NoEOF(err)
	if s.got >= fluent {
		s.rot.Progress(s.from.Host)
	} else if s.got >= some {
		s.rot.Some()
	}
	s.blob.at(s.from).target.ForgetURL(s.cur.Via)
	s.cur.Abandon()
	s.cur = nil
	s.rot.Failed(s.ctx, s.from,
		fmt.Errorf("%s: body broke off at byte %d: %w", s.from.Name, s.off, err))
}

// Close implements io.Closer.
func (s *stream) Close() error {
	if s.cur != nil {
		s.cur.Abandon()
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
		if len(s.rot.Hosts) == 0 {
			hosts, err := s.blob.hosts(s.ctx, s.way)
			if err != nil {
				s.rot.NoHosts(err)
			}
			s.rot.Hosts = hosts
		}
		e, err := s.rot.Pick(s.ctx)
		if errors.Is(err, registry.ErrNoRanges) {
			return s.spool()
		}
		if err != nil {
			return err
		}
		at := s.blob.at(e)
		r, err := s.ask(e, at)
		if err == nil {
			s.from, s.cur, s.got = e, r, 0
			at.serves(serving{e.Host, s.off, s.upTo, s.blob.all.served.Add(1)})
			if first := s.blob.locations[0].state; first != at {
				first.granted()
			}
			return nil
		}
		if errors.Is(err, errIgnored) {
			e.Whole = true
			continue
		}
		if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrUnauthorized) {
			at.note(e.Host, func(r *record) { r.absent = time.Now().Add(absentFor) })
		}
		s.rot.Failed(s.ctx, e, err)
	}
}

// spool has the rest come from the blob's spool; where there cannot be one, as of a whole blob.
func (s *stream) spool() error {
	r, err := s.blob.all.spools.open(s)
	if errors.Is(err, errNoRoom) {
		s.way, s.rot.Hosts = whole, nil
		return s.connect()
	}
	if err != nil {
		return fmt.Errorf("%w (%s)", err, s.rot.What)
	}
	s.spooled = r
	return nil
}

// ask sends the request and leaves the answer's body at the wanted byte.
func (s *stream) ask(e *registry.Candidate, at *state) (*registry.Reply, error) {
	b, h := s.blob, e.Host
	c := registry.Call{
		Method: http.MethodGet, Rest: "blobs/" + b.desc.Digest.String(),
		Target: &at.target, Proved: true,
		// Without this the transport may ask for gzip, and what it unpacks has other offsets.
		Header: http.Header{"Accept-Encoding": {"identity"}},
	}
	// The whole blob is asked for without a range: such answers come from more caches.
	partial := s.off > 0 || s.left < b.desc.Size
	if partial && s.way != whole && h.IgnoresRanges() && !at.about(h).ranged {
		release, err := at.probe(s.ctx)
		if err != nil {
			return nil, err
		}
		defer release()
		if s.way == ranged && time.Now().Before(at.about(h).whole) {
			return nil, errIgnored // another reader has found out
		}
	}
	if partial {
		c.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.off, s.off+s.left-1))
	}
	if time.Now().Before(at.about(h).suspected) {
		c.Header.Set("Cache-Control", "no-cache")
	}
	r, err := e.Of.Send(s.ctx, h, &c)
	ignored := func(r *record) { r.whole, r.ranged = time.Now().Add(ignoredFor), false }
	var no *registry.StatusError
	if partial && s.way != whole && errors.As(err, &no) &&
		no.Code == http.StatusRequestedRangeNotSatisfiable {
		// The range is one of the blob. Whether the host has that, or none, all of it will show.
		at.note(h, ignored)
		return nil, errIgnored
	}
	if err != nil {
		return nil, err
	}
	skip, upTo, err := examine(r.Response, s.off, s.left, b.desc.Size)
	switch {
	case err == nil && partial && r.StatusCode == http.StatusPartialContent:
		at.note(h, func(r *record) { r.whole, r.ranged = time.Time{}, true })
	case err == nil && partial:
		h.IgnoredRange()
		at.note(h, ignored)
		if s.way != whole {
			r.Abandon()
			return nil, errIgnored
		}
	}
	if err == nil && skip > 0 {
		var n int64
		if n, err = io.CopyN(io.Discard, r, skip); err != nil {
			err = fmt.Errorf("body broke off after %d of %d bytes before the wanted ones: %w", n,
				skip, registry.NoEOF(err))
		}
	}
	if err != nil {
		at.target.ForgetURL(r.Via)
		r.Abandon()
		return nil, fmt.Errorf("%s %s%s: %w", c.Method, r.Via.Host, r.Via.Path, err)
	}
	s.upTo = upTo
	return r, nil
}
