package layer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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

// places says where a layer's spans are fetched.
type places struct {
	index.Spans       // as the layer's blob has them
	copy        *Copy // has some of them; nil: there is none, or none that is used
}

// copied says whether span i comes from the copy.
func (p places) copied(i int) bool {
	if p.copy == nil {
		return false
	}
	_, ok := p.copy.Frames[i]
	return ok
}

// at returns span i as it is coded where it is fetched.
func (p places) at(i int) index.Span {
	s := p.Spans[i]
	if p.copied(i) {
		f := p.copy.Frames[i]
		s.Codec, s.Bit, s.Window, s.Blob, s.BlobSize = index.Zstd, 0, index.Range{}, f.Off, f.Size
	}
	return s
}

// source returns where an extent is fetched.
func (l *Layer) source(p places, e extent) Source {
	if p.copied(e.first) {
		return p.copy.Source
	}
	return l.o.Blob
}

// useful returns a copy without the frames that are of another index, cost more than they save, or
// are more than the budget has room for.
func (c *Copy) useful(spans index.Spans, b *line.Budget) *Copy {
	u := places{spans, &Copy{Source: c.Source, Frames: maps.Clone(c.Frames)}}
	maps.DeleteFunc(u.copy.Frames, func(i int, f index.Range) bool {
		if uint(i) >= uint(len(spans)) {
			return true
		}
		s := u.at(i)
		most := copyExcess * (spans[i].BlobSize + spans[i].Window.Size)
		return f.Size > most || affordable(b, &s) != nil
	})
	return u.copy
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
	if c := l.copy.Load(); c != nil {
		l.copy.CompareAndSwap(c, c.useful(spans, l.o.Budget))
	}
	l.spans.Store(&spans) // after the copy, which is used from now on
	return spans, nil
}

// places returns where the spans, which table has returned, are fetched now.
func (l *Layer) places(spans index.Spans) places { return places{spans, l.copy.Load()} }

// leaveCopy has all spans come from the layer's blob from now on. It says whether some have not
// until now. What is under way from the copy comes from it all the same.
func (l *Layer) leaveCopy() bool { return l.copy.Swap(nil) != nil }

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
	g.places.copy = nil
	var missing []int
	for _, b := range bad {
		if err := affordable(l.o.Budget, &g.places.Spans[b.span]); err != nil {
			l.retire(g.flight(b.span), fmt.Errorf("span %d: %w", b.span, err))
			continue
		}
		missing = append(missing, b.span)
	}
	slices.Sort(missing)
	todo := plan(g.places, missing, l.request(g.claim.Priority()))
	for _, e := range todo {
		l.wantWindows(g, e)
	}
	admitted, err := l.admit(g, todo)
	return todo, admitted, err
}
