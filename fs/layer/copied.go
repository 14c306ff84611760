package layer

import (
	"sync"

	"github.com/mica-snapshotter/mica/index"
)

// Copy is some of a layer's spans, each as zstd frames, in another blob: they take fewer bytes there, less of a processor, and no window.
// A span that the copy has comes from it. When one does not come, or is wrong, all come from the layer's blob from then on.
type Copy struct {
	Source Source
	Frames map[int]index.Range // by span: the place in Source
}

// copyBase is where in a table of spans the copy begins, as if it lay behind the blob: farther than any blob reaches.
const copyBase = 1 << 60

// copied says whether a span of a table lies in the copy.
func copied(s *index.Span) bool { return s.Codec == index.Zstd }

// over returns the spans, of which the copy's own lie there.
func (c *Copy) over(spans index.Spans) index.Spans {
	out := append(index.Spans(nil), spans...)
	for i, f := range c.Frames {
		if uint(i) >= uint(len(out)) {
			continue // it is of another index
		}
		s := &out[i]
		s.Codec, s.Bit, s.Window = index.Zstd, 0, index.Range{}
		s.Blob, s.BlobSize = copyBase+f.Off, f.Size
	}
	return out
}

// tables is a layer's table of spans while it has a copy.
type tables struct {
	mu   sync.Mutex
	own  index.Spans // as the index has them
	over bool        // the copy is not used any more
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
	l.tables.mu.Lock()
	defer l.tables.mu.Unlock()
	if t := l.spans.Load(); t != nil {
		return *t, nil
	}
	if l.o.Copy != nil && !l.tables.over {
		l.tables.own = spans
		spans = l.o.Copy.over(spans)
	}
	l.spans.Store(&spans)
	return spans, nil
}

// leaveCopy has all spans come from the layer's blob from now on, and says whether some have not until now.
func (l *Layer) leaveCopy() bool {
	if l.o.Copy == nil {
		return false
	}
	l.tables.mu.Lock()
	defer l.tables.mu.Unlock()
	if l.tables.over {
		return false
	}
	l.tables.over = true
	if own := l.tables.own; own != nil {
		l.spans.Store(&own)
		l.tables.own = nil
	}
	return true
}

// source returns where a place of a table is read, and its offset there.
func (l *Layer) source(at int64) (Source, int64) {
	if c := l.o.Copy; c != nil && at >= copyBase {
		return c.Source, at - copyBase
	}
	return l.o.Blob, at
}

// notCopied returns what is missing of an extent that the copy did not bring, for err. It is fetched once more.
func (l *Layer) notCopied(g *group, e extent, err error) (missing []corruption) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := e.first; i < e.first+e.n; i++ {
		if !g.flight(i).ended {
			missing = append(missing, corruption{i, err})
		}
	}
	return missing
}
