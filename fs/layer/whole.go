package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// A layer whose spans are index.FromStart is here whole, or is fetched whole: the first read of a
// missing span starts one stream of the blob, from its beginning, which brings all that is missing
// in the device's order. The stream is a group that has begun at once and whose flights are the
// missing spans. Readers come and go; the stream goes on without them, because the next one would
// have to begin it anew, until it has brought all, its layer is closed, or nothing comes for
// Options.Deadline.

// errNoWhole is why a span of such a layer cannot be fetched.
var errNoWhole = errors.New("the layer can only be fetched whole, and nothing is known of how")

// errStalled ends a stream of which nothing comes.
var errStalled = errors.New("nothing comes of the layer")

// wholeLocked starts the stream that brings all spans that are neither in the store nor on their
// way, and those of missing.
func (l *Layer) wholeLocked(
	ctx context.Context, spans index.Spans, missing []int, prio line.Priority,
) *group {
	g := &group{
		whole: true, begun: true, moved: time.Now(),
		extent: extent{0, len(spans)}, spans: spans, flights: make([]*flight, len(spans)),
		urgency: line.NewUrgency(prio), done: make(chan struct{}),
	}
	g.ctx, g.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	add := func(i int) {
		f := &flight{span: i, group: g, urgency: line.NewUrgency(prio)}
		l.flights[i], g.flights[i] = f, f
	}
	for i := range spans {
		if l.flights[i] == nil && !l.store.Present(i) {
			add(i)
		}
	}
	for _, i := range missing {
		if g.flights[i] == nil {
			add(i) // the store has it and cannot read it
		}
	}
	l.goLocked(g, l.bringWhole)
	return g
}

// bringWhole is bring for a stream.
func (l *Layer) bringWhole(g *group) {
	for try := 1; ; try++ {
		err := l.bringLeft(g)
		if err == nil {
			return
		}
		if !errors.Is(err, index.ErrCorrupt) || try == maxTries {
			l.giveUp(g, err)
			return
		}
		l.counters.corrupt.Add(1)
		l.log.Warn("fetched bytes are wrong", "err", err)
		l.o.Blob.Suspect(0, l.o.Blob.Size())
		if err := sleep(g.ctx, pause(try)); err != nil {
			l.giveUp(g, err)
			return
		}
	}
}

// bringLeft brings what is left of a stream's flights.
func (l *Layer) bringLeft(g *group) error {
	urgencies := make([]*line.Urgency, len(g.spans))
	l.mu.Lock()
	for i, f := range g.flights {
		if f != nil && !f.ended {
			urgencies[i] = f.urgency
		}
	}
	l.mu.Unlock()
	return l.stream(g.ctx, g.spans, urgencies, func(i int, buf *line.Buffer) error {
		l.mu.Lock()
		g.moved = time.Now()
		l.mu.Unlock()
		l.keep(g.flights[i], &g.spans[i], buf)
		return nil
	})
}

// Stream fetches the layer from its beginning and calls fn with the verified bytes of some of its
// spans, in order, whatever the store has. They are fn's until it returns. For layers whose spans
// are index.FromStart.
func (l *Layer) Stream(ctx context.Context, some []int, fn func(i int, data []byte) error) error {
	spans, err := l.index.Spans()
	if err != nil {
		return err
	}
	urgencies := make([]*line.Urgency, len(spans))
	for _, i := range some {
		urgencies[i] = line.NewUrgency(line.Background)
	}
	return l.stream(ctx, spans, urgencies, func(i int, buf *line.Buffer) error {
		defer buf.Free()
		return fn(i, buf.B)
	})
}

// stream calls use, which owns the buffer, with the spans that have an urgency. An error wraps
// index.ErrCorrupt if what came is not the layer.
func (l *Layer) stream(
	ctx context.Context, spans index.Spans, urgencies []*line.Urgency,
	use func(i int, buf *line.Buffer) error,
) error {
	if l.o.Unpack == nil {
		return errNoWhole
	}
	last := len(urgencies)
	for last > 0 && urgencies[last-1] == nil {
		last--
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(l.o.Deadline, func() {
		cancel(fmt.Errorf("%w for %v", errStalled, l.o.Deadline))
	})
	defer idle.Stop()
	blob, err := l.open(ctx, l.o.Blob, 0, l.o.Blob.Size())
	if err != nil {
		return because(ctx, err)
	}
	defer blob.Close()
	body, err := l.o.Unpack(ctx, blob)
	if err != nil {
		return because(ctx, err)
	}
	defer body.Close()
	for i := range last {
		idle.Reset(l.o.Deadline)
		s := &spans[i]
		if urgencies[i] == nil {
			if _, err := io.CopyN(io.Discard, body, s.Size); err != nil {
				return because(ctx, early(err))
			}
			continue
		}
		mine := func(buf *line.Buffer) error { return use(i, buf) }
		err := l.streamSpan(ctx, body, s, urgencies[i], mine)
		if err != nil {
			return fmt.Errorf("span %d: %w", i, because(ctx, err))
		}
	}
	return nil
}

// streamSpan reads and verifies one span.
func (l *Layer) streamSpan(
	ctx context.Context, body io.Reader, s *index.Span, u *line.Urgency,
	use func(*line.Buffer) error,
) error {
	decode := l.o.Budget.Decode
	if err := decode.Acquire(ctx, s.Size, u); err != nil {
		return err
	}
	defer decode.Release(s.Size)
	buf := l.o.Budget.Buffer(s.Size)
	if _, err := io.ReadFull(body, buf.B); err != nil {
		buf.Free()
		return early(err)
	}
	if sha256.Sum256(buf.B) != s.Digest {
		buf.Free()
		return fmt.Errorf("%w: digest differs", index.ErrCorrupt)
	}
	return use(buf)
}

// early is the error of a stream, which must not end before its last span.
func early(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the layer ends early", index.ErrCorrupt)
	}
	return err
}

// because adds why ctx has ended to an error that comes of it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
