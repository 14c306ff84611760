package store

import (
	"errors"
	"sync/atomic"

	"github.com/mica-snapshotter/mica/index"
)

// known is what a layer's index says of its device, as far as the store needs it.
type known struct {
	load    func() (index.Spans, error)
	spans   atomic.Pointer[index.Spans] // nil until needed
	scratch Scratch
	whole   func() // nil: nobody is told
}

// Scratch lends n bytes to compare what lies on disk in, which free gives back. It may wait for
// others to do so.
type Scratch func(n int64) (buf []byte, free func())

// errUnknown: nobody has called Know.
var errUnknown = errors.New("the layer's spans are not known")

// Know tells where the layer's spans lie in its device and what their digests are, and where memory
// comes from to compare them in; nil: it is allocated. whole is called each time that the last span
// that was missing has come, and must not block; it may be nil. Know comes before all methods that
// return or take a span's bytes. spans is called when they are needed first; an error is not kept.
// Of those who have the layer open the last one's word counts.
func (l *Layer) Know(spans func() (index.Spans, error), scratch Scratch, whole func()) {
	if scratch == nil {
		scratch = func(n int64) ([]byte, func()) { return make([]byte, n), func() {} }
	}
	l.known.Store(&known{load: spans, scratch: scratch, whole: whole})
}

// table returns the spans, loaded if need be.
func (l *Layer) table() (index.Spans, error) {
	k := l.known.Load()
	if k == nil {
		return nil, errUnknown
	}
	if t := k.spans.Load(); t != nil {
		return *t, nil
	}
	spans, err := k.load()
	if err != nil {
		return nil, err
	}
	k.spans.Store(&spans)
	return spans, nil
}
