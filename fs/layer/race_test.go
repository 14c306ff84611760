package layer

import (
	"context"
	"io"
	"testing"
)

// held is a source whose bytes were asked for before.
type held struct{ *memory }

func (h held) Range(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
	body, _, err := h.memory.Range(ctx, off, n)
	return body, true, err
}

// TestPaceOfHeld: how soon bytes come that are here already says nothing of how long others take.
func TestPaceOfHeld(t *testing.T) {
	f := setup(t, newSample(t), func(f *fixture, o *Options) { o.Blob = held{f.blob} })
	off, n := f.span(3)
	f.mustRead(off, n)
	p := &f.way().pace
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.first) > 0 {
		t.Errorf("%d requests count", len(p.first))
	}
}
