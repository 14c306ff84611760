package layer

import (
	"fmt"
	"runtime/debug"

	"github.com/mica-snapshotter/mica/index"
)

// A panic in what works on foreign bytes, or brings them, is an error of the reads that it works
// for, and of nobody else's. Each goroutine of a fetch has to see to that itself: a group's is
// survive's, those that it starts are line.Guarded's.

// decode is Span.Decode; a panic counts as what the bytes are not.
func (l *Layer) decode(s *index.Span, dst, blob, window []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			l.log.Error("panic in a decoder", "span", s.Device, "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: panic: %v", index.ErrCorrupt, v)
		}
	}()
	return s.Decode(dst, blob, window)
}

// survive ends a group whose goroutine panics. It is deferred.
func (l *Layer) survive(g *group) {
	if v := recover(); v != nil {
		l.log.Error("panic in a fetch", "panic", v, "stack", string(debug.Stack()))
		l.giveUp(g, fmt.Errorf("panic: %v", v))
	}
}
