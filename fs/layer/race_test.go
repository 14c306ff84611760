package layer

import (
	"context"
	"io"
	"testing"
)

// held is a source whose bytes were asked for before.
type held struct{ *memory }

type heldBody struct{ io.ReadCloser }

func (heldBody) Held() {}

func (h held) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return heldBody{io.NopCloser(io.NewSectionReader(readerAt{h.memory}, off, n))}, nil
}

// readerAt reads a source without a context.
type readerAt struct{ m *memory }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return copy(p, r.m.b[off:]), nil }

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
