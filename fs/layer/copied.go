package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mica-snapshotter/mica/fs/line"
	"github.com/mica-snapshotter/mica/index"
)

// Copy is some of a layer's spans, each as zstd frames, in another blob: they take fewer bytes
// there, less of a processor, and no window. A span that the copy has comes from it. When one does
// not come, or is wrong, all come from the layer's blob from then on.
type Copy struct {
	Source Source
	// Frames is by span the place in Source. One that is far larger than what it is to save is left
	// out.
	Frames map[int]index.Range
}

const (
	// copyBase is where in a table of spans the copy begins, as if it lay behind the blob: farther
	// than any blob reaches.
	copyBase = 1 << 60
	// A request to a copy may take copyPatience, and as long as its bytes do at copyRate, bytes a
	// second: the layer's own registry may be quicker.
	copyPatience = 10 * time.Second
	copyRate     = 64 << 10
	// copyRatio is how many times as many bytes of the device as one request may have at most come
	// by one of a copy: they may have to come from the layer in the end.
	copyRatio = 8
	// A frame may have copyExcess times as many bytes as span and window have elsewhere: it still
	// saves a request.
	copyExcess = 2
)

// copied says whether a span of a table lies in the copy.
func copied(s *index.Span) bool { return s.Codec == index.Zstd }

// over returns the spans, of which the copy's own lie there, if the budget has room for each.
func (c *Copy) over(spans index.Spans, b *line.Budget) index.Spans {
	out := slices.Clone(spans)
	for i, f := range c.Frames {
		if uint(i) >= uint(len(out)) {
			continue // it is of another index
		}
		s := out[i]
		most := copyExcess * (s.BlobSize + s.Window.Size)
		s.Codec, s.Bit, s.Window = index.Zstd, 0, index.Range{}
		s.Blob, s.BlobSize = copyBase+f.Off, f.Size
		if f.Size <= most && affordable(b, &s) == nil {
			out[i] = s
		}
	}
	return out
}

// copying is what a layer has of a copy.
type copying struct {
	source Source // nil: there was none

	mu   sync.Mutex
	copy *Copy // nil: there is none, or its frames are in the table
	over bool  // it is not used any more
}

// table returns the spans, loaded if need be.
func (l *Layer) table() (index.Spans, error) {
	if t := l.spans.Load(); t != nil {
		return *t, nil
	}
	spans, err := l.index.Spans()
	if err != nil {
		return nil, err
	}
	c := &l.copying
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := l.spans.Load(); t != nil {
		return *t, nil
	}
	if c.copy != nil && !c.over {
		spans = c.copy.over(spans, l.o.Budget)
	}
	c.copy = nil
	l.spans.Store(&spans)
	return spans, nil
}

// leaveCopy has all spans come from the layer's blob from now on. It says whether some have not
// until now.
func (l *Layer) leaveCopy() bool {
	c := &l.copying
	if c.source == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	c.over = true
	if l.spans.Load() != nil {
		own, err := l.index.Spans()
		if err == nil {
			l.spans.Store(&own)
		} else {
			l.spans.Store(nil) // loaded when it is needed
		}
	}
	return true
}

// source returns where a place of a table is read, and its offset there.
func (l *Layer) source(at int64) (Source, int64) {
	if c := l.copying.source; c != nil && at >= copyBase {
		return c, at - copyBase
	}
	return l.o.Blob, at
}

// fromCopy bounds the time that a request for an extent of a copy may take.
func fromCopy(ctx context.Context, at byteRange) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, copyPatience+time.Duration(at.size())*time.Second/copyRate)
}

// notCopied returns what is missing of an extent that the copy did not bring, for err, and is to
// come from elsewhere. An error says that nobody waits for it any more.
func (l *Layer) notCopied(g *group, e extent, err error) (missing []corruption, _ error) {
	if g.ctx.Err() != nil {
		if errors.Is(context.Cause(g.ctx), errGaveUp) {
			l.leaveCopy() // for those who come next
		}
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := e.first; i < e.first+e.n; i++ {
		if !g.flight(i).ended {
			missing = append(missing, corruption{i, err})
		}
	}
	return missing, nil
}

// planAnew plans the requests for what a group's copy did not bring right, now from the layer's
// blob.
func (l *Layer) planAnew(g *group, bad []corruption) ([]extent, *line.Grant, error) {
	none := &line.Grant{}
	spans, err := l.table()
	if err != nil {
		return nil, none, err
	}
	g.spans = spans
	var missing []int
	for _, b := range bad {
		if err := affordable(l.o.Budget, &spans[b.span]); err != nil {
			l.retire(g.flight(b.span), fmt.Errorf("span %d: %w", b.span, err))
			continue
		}
		missing = append(missing, b.span)
	}
	slices.Sort(missing)
	todo := plan(spans, missing, l.request(g.claim.Priority()))
	for _, e := range todo {
		l.wantWindows(g, e)
	}
	admitted, err := l.admit(g, todo)
	if err != nil {
		return nil, none, err
	}
	return todo, admitted, nil
}
